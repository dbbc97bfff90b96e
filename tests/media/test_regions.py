"""Regions of an image that the network sees: all of it, a crop, or windows."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models.media import patchmatch
from server.media import masks
from server.media.crop_regions import Mode, Region, canvas, choose_region, detail
from server.media.masks import PixelBox

NATIVE = (32, 48)
MODES: tuple[Mode, ...] = ("fit", "crop", "tile")


def hole(size: tuple[int, int], box: PixelBox) -> np.ndarray:
    return box.mask(*size)


def test_the_whole_image_is_fitted_with_its_proportions() -> None:
    region = choose_region("fit", hole((64, 64), PixelBox(0, 0, 1, 1)), NATIVE)
    assert region == Region(PixelBox(0, 0, 64, 64), (32, 32))
    assert choose_region("fit", hole((200, 100), PixelBox(0, 0, 1, 1)), NATIVE).scaled == (32, 16)
    assert choose_region("fit", hole((1, 1), PixelBox(0, 0, 1, 1)), NATIVE).scaled == (32, 32), "small images are enlarged"
    assert choose_region("fit", hole((1, 5000), PixelBox(0, 0, 1, 1)), NATIVE).scaled == (1, 48)


def test_a_crop_is_at_least_of_the_network_s_size_and_inside() -> None:
    assert choose_region("crop", hole((200, 300), PixelBox(100, 100, 4, 4)), NATIVE) == Region(PixelBox(78, 86, 48, 32), NATIVE)
    assert choose_region("crop", hole((200, 300), PixelBox(296, 0, 4, 4)), NATIVE) == Region(PixelBox(252, 0, 48, 32), NATIVE)


def test_a_crop_is_three_times_as_large_as_its_hole() -> None:
    region = choose_region("crop", hole((400, 400), PixelBox(180, 190, 32, 20)), NATIVE)
    assert region == Region(PixelBox(148, 168, 96, 64), NATIVE)


def test_a_hole_that_fills_the_image_is_cropped_to_all_of_it() -> None:
    region = choose_region("crop", np.ones((100, 90), bool), NATIVE)
    assert region.box == PixelBox(0, 0, 90, 100) and region.scaled == (32, 29)


@pytest.mark.parametrize(("size", "mode"), [((32, 48), "fit"), ((33, 48), "crop"), ((10, 49), "crop"), ((8, 8), "fit")])
def test_images_above_the_network_s_size_are_cropped(size: tuple[int, int], mode: Mode) -> None:
    mask = hole(size, PixelBox(1, 1, 2, 2))
    assert choose_region(None, mask, NATIVE) == choose_region(mode, mask, NATIVE)


def test_without_a_hole_there_is_nothing_to_see() -> None:
    for mode in (None, *MODES):
        assert choose_region(mode, np.zeros((100, 100), bool), NATIVE).windows == ()


@pytest.mark.parametrize("seed", range(20))
def test_windows_cover_the_hole_and_lie_inside(seed: int) -> None:
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 150, 2)
    mask = generator.random((height, width)) < generator.choice([0.002, 0.5, 1.0])
    if not mask.any():
        mask[height // 2, width // 2] = True
    region = choose_region("tile", mask, NATIVE)
    box = region.box
    assert region.scaled == (box.height, box.width)
    assert box.left >= 0 and box.left + box.width <= width and box.top >= 0 and box.top + box.height <= height
    remaining = mask.copy()
    window = (min(NATIVE[0], height), min(NATIVE[1], width))
    for top, left in region.windows:
        view = remaining[box.top + top : box.top + top + window[0], box.left + left : box.left + left + window[1]]
        assert view.shape == window and view.any(), "each window lies inside and finds something to fill"
        view[:] = False
    assert not remaining.any()


def test_half_of_each_window_is_known_at_its_turn() -> None:
    mask = hole((300, 300), PixelBox(100, 100, 100, 100))
    region = choose_region("tile", mask, NATIVE)
    remaining = mask.copy()
    assert len(region.windows) > 9
    for top, left in region.windows:
        view = remaining[region.box.top + top :, region.box.left + left :][: NATIVE[0], : NATIVE[1]]
        assert 0 < view.mean() <= 0.5
        view[:] = False


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
def test_what_lies_under_the_mask_is_not_sent(mode: Mode, kind: str) -> None:
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (70, 90, len(kind)), np.uint8)
    mask = generator.random((70, 90)) < 0.2
    mask[:30] = False
    mask[40:52, 20:44] = True
    region = choose_region(mode, mask, NATIVE)
    seen, missing = canvas(Image.fromarray(pixels), mask, region)
    other = np.where(mask[..., np.newaxis], 255 - pixels, pixels)
    again, _ = canvas(Image.fromarray(other), mask, region)
    assert seen.shape == (*region.scaled, 3) and missing.shape == region.scaled and missing.any()
    assert np.array_equal(seen, again)


def test_neighbours_of_the_hole_are_resampled_without_it() -> None:
    """A red image with a blue hole stays red all around it, within the rounding of colours that were weighted: two levels."""
    image = Image.new("RGB", (100, 100), (200, 30, 20))
    mask = hole((100, 100), PixelBox(33, 41, 20, 17))
    image.paste((0, 0, 255), (33, 41, 53, 58))
    seen, missing = canvas(image, mask, choose_region("fit", mask, NATIVE))
    assert np.abs(seen[~missing].astype(int) - [200, 30, 20]).max() <= 2


def test_at_its_own_scale_a_canvas_is_the_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    mask = hole((100, 100), PixelBox(50, 50, 3, 3))
    region = choose_region("crop", mask, NATIVE)
    seen, missing = canvas(Image.fromarray(pixels), mask, region)
    part = pixels[region.box.top :, region.box.left :][: NATIVE[0], : NATIVE[1]]
    assert np.array_equal(seen[~missing], part[~missing]) and missing.sum() == 9


def test_transparent_parts_that_are_kept_look_white() -> None:
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    mask = hole((32, 32), PixelBox(0, 0, 1, 1))
    seen, missing = canvas(image, mask, choose_region("fit", mask, (32, 32)))
    assert (seen[~missing] == 255).all()


@pytest.mark.parametrize("kind", ["grid", "scattered", "solid"])
def test_patches_are_copied_into_bounded_hole_of_any_detail(kind: str) -> None:
    """A reduced pixel is to be filled if any of its own is."""
    mask = np.zeros((1500, 2000), bool)
    if kind == "scattered":
        mask.reshape(-1)[np.random.default_rng(0).integers(0, mask.size, 120_000)] = True
    elif kind == "grid":
        mask[::40], mask[:, ::40] = True, True
    else:
        mask[100:1100, 100:1100] = True
    region = choose_region("fit", mask, NATIVE)
    fine = detail(mask, region)
    assert 0 < masks.resize(mask, *fine.scaled).sum() <= patchmatch.MAX_HOLE_PIXELS
    assert fine.box == region.box and fine.scaled[0] / fine.scaled[1] == pytest.approx(0.75, rel=0.02)
