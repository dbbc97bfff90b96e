"""A network that sees pixels and paints with convolutions fills holes of a running service in every way that it offers."""

from __future__ import annotations

import base64

import httpx
import numpy as np
import pytest
from PIL import Image

from models.media import patchmatch
from tests.harness.pictures import box_mask, decoded, encoded, noise, outside
from tests.inpaint.painter import JSON, Painter

HOLE = (21, 11, 38, 26)
"""Ends within patches."""
IMAGE = noise(40, 60)
FILE, MASK = encoded(IMAGE), box_mask(40, 60, HOLE)
KEPT = outside(40, 60, HOLE)


def ask(painter: Painter, file: bytes = FILE, headers: dict[str, str] | None = None, **options: object) -> httpx.Response:
    files = {"image": ("image", file), "mask": ("mask", MASK)}
    answer = painter.gateway.http.post("/v1/inpaint", files=files, data={"model": "seer", "seed": 5, **options}, headers=headers)
    return answer.raise_for_status()


@pytest.mark.parametrize("size", ["fit", "crop", "tile"])
@pytest.mark.parametrize("method", ["network", "exemplar", "network-exemplar"])
def test_every_method_and_size_keeps_what_is_outside(painter: Painter, method: str, size: str) -> None:
    if method != "network" and not patchmatch.installed():
        pytest.skip("patchmatch-cython has no wheel for this machine")
    answer = ask(painter, method=method, size=size)
    assert (answer.headers["x-model"], answer.headers["x-method"]) == ("seer@1", method)
    filled = decoded(answer.content)
    assert np.array_equal(filled[KEPT], np.asarray(IMAGE)[KEPT])
    assert (filled[~KEPT] != np.asarray(IMAGE)[~KEPT]).any(axis=1).mean() > 0.9


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "ddim", "steps": 3, "eta": 0.5},
        {"sampler": "ancestral", "steps": 3, "temperature": 0.5},
        {"sampler": "one-step", "steps": 1},
        {"steps": 3, "spacing": "logsnr", "inject_known": False},
        {"steps": 2, "feather": 2},
    ],
    ids=str,
)
def test_every_sampler_does(painter: Painter, options: dict[str, object]) -> None:
    filled = decoded(ask(painter, **options).content)
    assert np.array_equal(filled[KEPT], np.asarray(IMAGE)[KEPT])
    assert (filled[~KEPT] != np.asarray(IMAGE)[~KEPT]).any(axis=1).mean() > 0.9


def test_samples_share_what_was_seen_and_differ(painter: Painter) -> None:
    results = ask(painter, headers=JSON, samples=2, steps=2).json()["results"]
    first, second = (decoded(base64.b64decode(result["image"])) for result in results)
    assert np.array_equal(first[KEPT], second[KEPT]) and not np.array_equal(first, second)


def test_known_pixels_of_a_patch_are_seen_and_hidden_ones_are_not(painter: Painter) -> None:
    def filled(change: tuple[int, int]) -> np.ndarray:
        pixels = np.array(IMAGE)
        pixels[change] = 255 - pixels[change]
        return decoded(ask(painter, encoded(Image.fromarray(pixels)), steps=2, size="tile", blend="none").content)

    usual, inside, edge = filled((0, 0)), filled((15, 25)), filled((15, 20))
    assert np.abs(usual[~KEPT].astype(int) - inside[~KEPT]).max() <= 2
    assert not np.array_equal(usual[~KEPT], edge[~KEPT])
