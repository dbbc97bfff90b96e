"""Holes are filled with colours of the image, as rough as the image is."""

from __future__ import annotations

import numpy as np
import pytest

from models.media import patchmatch
from models.systems.diffmae.exemplar_fill import ExemplarCrop, ExemplarState

SIDE = 64
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[20:44, 16:46] = True

copies = pytest.mark.skipif(not patchmatch.installed(), reason="patchmatch-cython has no wheel for this machine")


def texture(seed: int = 0) -> np.ndarray:
    """Grains of a few pixels."""
    grains = np.random.default_rng(seed).normal(0, 1, (SIDE, SIDE, 3))
    for axis in (0, 1):
        grains = grains + np.roll(grains, 1, axis)
    return np.clip(128 + 20 * grains, 0, 255).astype(np.uint8)


def fill(image: np.ndarray, start: np.ndarray | None = None, seed: int = 1) -> np.ndarray:
    hidden = np.where(HOLE[..., np.newaxis], 0, image).astype(np.uint8)
    state = ExemplarState.start(ExemplarCrop(hidden, HOLE), [seed], {}, None if start is None else start[np.newaxis])
    while not state.is_done:
        state = state.next()
    return state.finished[0]


def roughness(image: np.ndarray) -> float:
    """Mean difference of neighbours in the hole."""
    inner = image[20:44, 16:46].astype(float)
    return float((np.abs(np.diff(inner, axis=0)).mean() + np.abs(np.diff(inner, axis=1)).mean()) / 2)


@copies
@pytest.mark.parametrize("start", [None, np.full((32, 32, 3), 90, np.uint8)], ids=["by itself", "from a flat filling on"])
def test_a_texture_stays_as_rough_as_it_is(start: np.ndarray | None) -> None:
    image = texture()
    assert 0.8 <= roughness(fill(image, start)) / roughness(image) <= 1.1


@copies
def test_every_filled_pixel_is_a_colour_of_the_image() -> None:
    image = texture(3)
    known_values = {tuple(colour) for colour in image[~HOLE].tolist()}
    assert {tuple(colour) for colour in fill(image)[HOLE].tolist()} <= known_values


@copies
def test_what_is_flat_stays_flat() -> None:
    image = np.full((SIDE, SIDE, 3), (30, 140, 220), np.uint8)
    assert np.array_equal(fill(image), image)


@copies
def test_distant_patches_are_not_put_next_to_other_colours() -> None:
    """A red saucer on wood: the hole lies in the wood."""
    image = texture()
    image[:12] = (200, 20, 20)
    made = fill(image)[HOLE].astype(int)
    assert (made[:, 0] - made[:, 1] < 150).all()


def test_the_nearest_source_is_found() -> None:
    image, sources = texture().astype(np.float32), np.zeros((SIDE, SIDE), bool)
    sources[2:20, 2:30] = True
    asking = np.zeros_like(sources)
    asking[40, 40] = True
    image[38:43, 38:43] = image[5:10, 11:16] + 1
    assert patchmatch.nearest_patches(image, asking, sources)[40, 40].tolist() == [13, 7]


def test_a_finer_field_keeps_pieces_together() -> None:
    finer = patchmatch.upsample_field(np.full((4, 4, 2), (2, 1)), 9, 8)
    assert finer[:2, :2].tolist() == [[[4, 2], [5, 2]], [[4, 3], [5, 3]]]
    assert finer[8, 7].tolist() == [5, 4], "a row beyond the last whole cell"
