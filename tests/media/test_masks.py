"""Masks from pictures, transparency and words, and what is done with them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from server.media import masks
from server.media.masks import AreaShare, PixelBox, bounds, grow, mask_from_alpha, mask_from_image, parse, resize


def random_mask(seed: int, height: int, width: int, share: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < share


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("box:1,2,3,4", PixelBox(1, 2, 3, 4)),
        ("box: 1, 2, 3, 4", PixelBox(1, 2, 3, 4)),
        ("center", AreaShare("center", 0.25)),
        ("center:0.5", AreaShare("center", 0.5)),
        ("random:1", AreaShare("random", 1.0)),
    ],
)
def test_words_are_read(text: str, expected: PixelBox | AreaShare) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "box",
        "box:1,2,3",
        "box:1,2,0,4",
        "box:-1,2,3,4",
        "box:a,b,c,d",
        "box:１,2,3,4",
        "box:1_0,2,3,4",
        "center:0.2_5",
        "center:0",
        "center:1.1",
        "random",
        "random:nan",
        "random:inf",
        "all",
        "",
    ],
)
def test_other_words_are_refused_with_those_that_are_understood(text: str) -> None:
    with pytest.raises(ValueError, match="use `box:X,Y,W,H` in pixels, `center`, `center:RATIO` or `random:RATIO`"):
        parse(text)


def test_a_box_is_its_pixels_and_stays_inside() -> None:
    mask = PixelBox(2, 1, 3, 2).mask(4, 6)
    assert np.argwhere(mask).tolist() == [[y, x] for y in (1, 2) for x in (2, 3, 4)]
    assert PixelBox(0, 0, 6, 4).mask(4, 6).all()
    with pytest.raises(ValueError, match=r"the box from 2,1 to 7,3 leaves the image of 6 × 4 pixels"):
        PixelBox(2, 1, 5, 2).mask(4, 6)


def test_centre_mask_has_its_area_and_proportions_of_the_image() -> None:
    mask = AreaShare("center", 0.25).mask(100, 60, cell=8, seed=0)
    assert bounds(mask) == PixelBox(15, 25, 30, 50)
    assert AreaShare("center", 1.0).mask(7, 5, cell=8, seed=0).all()
    assert AreaShare("center", 1e-9).mask(7, 5, cell=8, seed=0).sum() == 1


def test_random_cells_are_chosen_by_the_seed() -> None:
    ours, again, other = (AreaShare("random", 0.25).mask(40, 64, cell=8, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(ours, again) and not np.array_equal(ours, other)
    cells = ours.reshape(5, 8, 8, 8).transpose(0, 2, 1, 3).reshape(40, 64)
    assert set(cells.mean(axis=1)) == {0.0, 1.0} and cells.mean() == 0.25
    assert AreaShare("random", 1.0).mask(13, 7, cell=2.5, seed=2**63 - 1).all()


def test_cells_are_pixels_at_least() -> None:
    """The network's patches are smaller where it sees an image enlarged."""
    assert AreaShare("random", 1.0).mask(1, 5000, cell=0.7, seed=0).all()
    assert {AreaShare("random", 0.25).mask(4, 6, cell=0.3, seed=seed).sum() for seed in range(20)} == {6}


@pytest.mark.parametrize(
    ("mode", "white", "black"),
    [("1", 1, 0), ("L", 128, 127), ("L", 255, 0), ("RGB", (0, 200, 0), (127, 127, 127)), ("P", 1, 0)],
)
def test_bright_pixels_are_filled(mode: str, white: object, black: object) -> None:
    picture = Image.new(mode, (4, 3), black)  # type: ignore[arg-type]
    if mode == "P":
        picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((2, 1), white)  # type: ignore[arg-type]
    assert np.argwhere(mask_from_image(picture.convert("RGB"))).tolist() == [[1, 2]]


def test_of_a_mask_with_transparency_only_that_counts() -> None:
    picture = Image.new("RGBA", (4, 3), (255, 255, 255, 255))
    picture.putpixel((2, 1), (255, 255, 255, 0))
    picture.putpixel((3, 1), (255, 255, 255, 1))
    assert np.argwhere(mask_from_image(picture)).tolist() == [[1, 2]]
    assert np.array_equal(mask_from_alpha(picture), mask_from_image(picture))


def test_a_mask_that_is_opaque_everywhere_counts_by_its_colours() -> None:
    picture = Image.new("RGBA", (4, 3), (0, 0, 0, 255))
    picture.putpixel((2, 1), (255, 255, 255, 255))
    assert np.argwhere(mask_from_image(picture)).tolist() == [[1, 2]]


@pytest.mark.parametrize("pixels", [0, 1, 3, 50])
def test_a_mask_grows_in_all_eight_directions(pixels: int) -> None:
    mask = random_mask(1, 20, 30, 0.01)
    assert mask.any()
    expected = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        expected[max(0, y - pixels) : y + pixels + 1, max(0, x - pixels) : x + pixels + 1] = True
    assert np.array_equal(grow(mask, pixels), expected)


def test_an_empty_mask_stays_empty() -> None:
    assert not grow(np.zeros((5, 6), bool), 3).any()
    assert bounds(np.zeros((5, 6), bool)) is None


@pytest.mark.parametrize("seed", range(8))
def test_a_scaled_mask_covers_whatever_a_pixel_touches(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 40, 4).tolist()
    (height, width), (new_height, new_width) = sizes[:2], sizes[2:]
    mask = random_mask(seed, height, width)
    expected = np.zeros((new_height, new_width), bool)
    for y in range(new_height):
        for x in range(new_width):
            top, bottom = y * height // new_height, -(-(y + 1) * height // new_height)
            left, right = x * width // new_width, -(-(x + 1) * width // new_width)
            expected[y, x] = mask[top:bottom, left:right].any()
    assert np.array_equal(resize(mask, new_height, new_width), expected)


def test_a_thin_stroke_survives_any_scale() -> None:
    mask = np.zeros((1000, 1000), bool)
    mask[333] = True
    assert resize(mask, 14, 14).any(axis=1).sum() == 1
    assert masks.THRESHOLD == 128
