"""Compositing changes no byte outside the mask."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image, ImageCms

from models.media import poisson_blending
from server.media import compositing
from server.media.compositing import Blend, compose, ramp, to_png
from server.media.masks import PixelBox, bounds


def pixels(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def composed_of(image: np.ndarray, made: np.ndarray, box: PixelBox, mask: np.ndarray, feather: int, blend: Blend = "none") -> np.ndarray:
    canvas = Image.fromarray(image)
    compose(canvas, made, box, mask, feather, blend)
    return np.asarray(canvas)


def read(file: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


@pytest.mark.parametrize("seed", range(12))
def test_every_byte_outside_the_mask_stays(seed: int) -> None:
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 60, 2)
    image = pixels(seed, height, width, int(generator.choice([3, 4])))
    mask = generator.random((height, width)) < generator.choice([0, 0.01, 0.5, 1])
    made = pixels(seed + 100, *generator.integers(1, 40, 2))
    blend: Blend = generator.choice(["membrane", "none"])
    composed = composed_of(image, made, PixelBox(0, 0, int(width), int(height)), mask, feather=int(generator.integers(0, 5)), blend=blend)
    assert composed.shape == image.shape and composed.dtype == np.uint8
    assert np.array_equal(composed[~mask], image[~mask])


def test_inside_it_is_what_was_made_in_its_place_and_opaque() -> None:
    image, made = pixels(0, 30, 40, 4), pixels(1, 10, 12)
    mask = PixelBox(6, 5, 4, 3).mask(30, 40)
    composed = composed_of(image, made, PixelBox(5, 4, 12, 10), mask, feather=0)
    assert np.array_equal(composed[5:8, 6:10, :3], made[1:4, 1:5])
    assert (composed[mask][:, 3] == 255).all()


def test_a_feather_is_a_ramp_inside_the_mask() -> None:
    mask = PixelBox(2, 0, 9, 7).mask(20, 20)
    area = bounds(mask)
    assert area is not None
    across = ramp(mask, area, 3)[0]
    assert across.tolist() == [1, 2, 3, 3, 3, 3, 3, 2, 1], "the image's border is no end of the mask"
    assert ramp(mask, area, 3)[-1].tolist() == [1] * 9
    assert (ramp(mask, area, 1) == 1).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_ramp_counts_the_steps_to_the_end_of_the_mask(seed: int) -> None:
    """The reference peels off one layer after the other."""
    generator = np.random.default_rng(seed)
    mask = generator.random((30, 25)) < generator.choice([0.6, 0.95, 1.0])
    mask[generator.integers(0, 30) :, : generator.integers(1, 25)] = True
    area, feather = bounds(mask), int(generator.integers(1, 9))
    inner = np.pad(mask, 1, mode="edge")[area.top : area.top + area.height + 2, area.left : area.left + area.width + 2]
    steps = np.zeros(inner.shape)
    for _ in range(feather):
        steps += inner
        wide = np.pad(inner, 1, constant_values=True)
        inner = np.all([wide[i : i + inner.shape[0], j : j + inner.shape[1]] for i in range(3) for j in range(3)], axis=0)
    assert np.array_equal(ramp(mask, area, feather), steps[1:-1, 1:-1])


@pytest.mark.parametrize("size", [(40, 3), (3, 40), (300, 1), (1, 300), (24, 24), (25, 24)])
@pytest.mark.parametrize("seed", range(4))
def test_a_ramp_is_the_same_in_a_turned_image(size: tuple[int, int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = generator.random(size) < generator.choice([0.9, 0.98, 1.0])
    mask[-1, -1] = False
    area, turned_area = bounds(mask), bounds(mask.T)
    assert area is not None and turned_area is not None
    assert np.array_equal(ramp(mask, area, 6), ramp(mask.T, turned_area, 6).T)


@pytest.mark.parametrize("seed", range(8))
def test_a_ramp_does_not_depend_on_the_tile_size(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = generator.random((20, 90)) < generator.choice([0.9, 0.98, 0.999])
    area, feather = bounds(mask), int(generator.integers(1, 9))
    assert area is not None
    expected = ramp(mask, area, feather)
    monkeypatch.setattr(compositing, "RAMP_TILE", 7)
    assert np.array_equal(ramp(mask, area, feather), expected)


def test_ramp_of_tall_strip_is_as_fast_as_of_wide_one() -> None:
    mask = np.ones((1_000_000, 1), bool)
    mask[-1] = False
    started = time.process_time()
    steps = ramp(mask, PixelBox(0, 0, 1, 999_999), 3)
    assert time.process_time() - started < 2
    assert steps[-4:, 0].tolist() == [3, 3, 2, 1]


def test_a_feather_of_two_blends_the_outermost_pixels_by_halves() -> None:
    image, made = np.full((9, 9, 3), 100, np.uint8), np.full((9, 9, 3), 200, np.uint8)
    mask = PixelBox(2, 2, 5, 5).mask(9, 9)
    composed = composed_of(image, made, PixelBox(0, 0, 9, 9), mask, feather=2)[4, :, 0]
    assert composed.tolist() == [100, 100, 150, 200, 200, 200, 150, 100, 100]


def smooth(height: int, width: int) -> np.ndarray:
    """Colours that change slowly."""
    down, across = np.mgrid[:height, :width]
    return np.stack([128 + 100 * np.sin(across / width * 3 + c) * np.cos(down / height * 2) for c in range(3)], axis=2).astype(np.uint8)


@pytest.mark.parametrize("hole", [PixelBox(20, 10, 40, 50), PixelBox(0, 0, 30, 80)])
def test_membrane_removes_edge_error_and_keeps_drawing(hole: PixelBox) -> None:
    """The filling is the image in other colours, with a line drawn across."""
    image, mask = smooth(90, 100), hole.mask(90, 100)
    made = (image * 0.7 + 20).astype(np.uint8)
    made[45] += 30
    box = PixelBox(0, 0, 100, 90)
    fitted, plain = (composed_of(image, made, box, mask, feather=0, blend=blend).astype(int) for blend in ("membrane", "none"))
    off_line = mask.copy()
    off_line[42:49] = False
    wrong, was = (np.abs(composed - image)[off_line].mean() for composed in (fitted, plain))
    assert wrong < was / 2
    inner = slice(hole.left + 6, hole.left + hole.width - 6)
    assert (fitted[45, inner] - fitted[42, inner]).mean() == pytest.approx(30, abs=5)


def test_membrane_treats_transparency_as_white() -> None:
    """The network sees it as white, too."""
    image = np.zeros((30, 30, 4), np.uint8)
    mask = PixelBox(10, 10, 8, 8).mask(30, 30)
    composed = composed_of(image, np.full((30, 30, 3), 200, np.uint8), PixelBox(0, 0, 30, 30), mask, feather=0, blend="membrane")
    assert (composed[mask] == 255).all() and np.array_equal(composed[~mask], image[~mask])


def test_without_a_known_neighbour_a_membrane_changes_nothing() -> None:
    made = pixels(1, 20, 30)
    composed = composed_of(pixels(0, 20, 30), made, PixelBox(0, 0, 30, 20), np.ones((20, 30), bool), feather=0, blend="membrane")
    assert np.array_equal(composed, made)


def test_large_membrane_on_small_grid_still_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = smooth(200, 260), PixelBox(30, 20, 170, 150).mask(200, 260)
    made = (image * 0.7 + 60).astype(np.uint8)
    fine = composed_of(image, made, PixelBox(0, 0, 260, 200), mask, feather=0, blend="membrane")
    monkeypatch.setattr(poisson_blending, "MAX_GRID_PIXELS", 30 * 30)
    monkeypatch.setattr(compositing, "STRIP_PIXELS", 170 * 7)
    coarse = composed_of(image, made, PixelBox(0, 0, 260, 200), mask, feather=0, blend="membrane")
    assert np.abs(coarse.astype(int) - fine).mean() < 1.5


@pytest.mark.parametrize("channels", [3, 4])
def test_a_png_holds_the_pixels_and_a_profile_of_rgb(channels: int) -> None:
    image = pixels(0, 5, 7, channels)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    written = read(to_png(Image.fromarray(image), profile))
    assert written.mode == ("RGB" if channels == 3 else "RGBA") and np.array_equal(np.asarray(written), image)
    assert written.info["icc_profile"] == profile


def test_a_profile_of_other_colours_would_be_wrong() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (lab, b"", b"short", None):
        assert "icc_profile" not in read(to_png(Image.fromarray(pixels(0, 2, 2)), profile)).info


def test_line_ending_at_hole_does_not_tint_its_surroundings() -> None:
    """A black line meets the edge of a white filling of a white page."""
    image, mask = np.full((60, 60, 3), 255, np.uint8), PixelBox(20, 20, 20, 20).mask(60, 60)
    image[:, 28:32] = 0
    composed = composed_of(image, np.full_like(image, 255), PixelBox(0, 0, 60, 60), mask, feather=0, blend="membrane")
    assert composed[mask].min() > 200 and composed[mask].mean() > 240


def test_uniformly_dark_filling_is_lightened_by_any_amount() -> None:
    image, mask = np.full((60, 60, 3), 220, np.uint8), PixelBox(20, 20, 20, 20).mask(60, 60)
    composed = composed_of(image, np.full_like(image, 40), PixelBox(0, 0, 60, 60), mask, feather=0, blend="membrane")
    assert (composed == image).all()


def test_a_profile_that_is_none_is_left_out() -> None:
    assert "icc_profile" not in Image.open(io.BytesIO(to_png(Image.new("RGB", (2, 2)), 5))).info  # type: ignore[arg-type]


def test_transparent_feather_is_opaque_and_hides_old_pixels() -> None:
    mask = np.zeros((9, 9), bool)
    mask[1:8, 1:8] = True
    made = np.full((9, 9, 3), 100, np.uint8)
    seen = []
    for hidden in (0, 250):
        image = np.dstack([np.full((9, 9, 3), hidden, np.uint8), np.where(mask, 0, 255).astype(np.uint8)])
        seen.append(composed_of(image, made, PixelBox(0, 0, 9, 9), mask, feather=2)[mask])
    assert np.array_equal(*seen) and (seen[0][:, 3] == 255).all() and len(np.unique(seen[0][:, 0])) > 1
