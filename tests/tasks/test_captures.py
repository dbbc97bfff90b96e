"""Images that are far larger than what a network sees of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.bundle import BundleSpec
from models.bundle_schema import QuerySpace
from server.media.images import ImageDecoder
from server.tasks.options import InvalidOption
from server.tasks.reconstruct import inputs
from server.tasks.reconstruct.schema import ReconstructOptions
from server.tasks.reconstruct.task import ReconstructTask
from tests.support.bundles.analytic_mcc import write_shell
from tests.support.images import CAPTURE, FOV, HEIGHT, WIDTH, npy, png

TIMES = 40
"""1,920 × 2,560 pixels."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> BundleSpec:
    folder: Path = tmp_path_factory.mktemp("bundles")
    return write_shell(folder, space=QuerySpace(spacing=0.2, reach=0.2, margin=0)).spec


@pytest.fixture(scope="module")
def large() -> bytes:
    with Image.open(io.BytesIO(CAPTURE["image"])) as image:
        return png(np.asarray(image.resize((TIMES * WIDTH, TIMES * HEIGHT), Image.Resampling.NEAREST)))


def seen_points(spec: BundleSpec, files: dict[str, bytes], **options: float) -> np.ndarray:
    task = ReconstructTask()
    [arrays] = task.prepare(files, task.plan(ReconstructOptions(**options), spec), spec, ImageDecoder(50_000_000))
    return arrays["seen"] * arrays["scale"] + arrays["scale"] * arrays["centre"]


@pytest.mark.parametrize("camera", [{"fov": FOV}, {"fx": 50.0, "fy": 60.0, "cx": 30.0, "cy": 20.0}])
def test_a_large_image_shows_the_same_points(spec: BundleSpec, large: bytes, camera: dict[str, float]) -> None:
    """Images are reduced to two megapixels, but the camera is that of the image that was sent."""
    small = seen_points(spec, CAPTURE, **camera)
    larger = {name: value * (1 if name == "fov" else TIMES) for name, value in camera.items()}
    again = seen_points(spec, CAPTURE | {"image": large}, **larger)
    both = np.isfinite(small).all(axis=2) & np.isfinite(again).all(axis=2)
    assert both.sum() > 0.8 * np.isfinite(small).all(axis=2).sum()
    assert np.abs(small - again)[both].max() < 0.05


def test_a_large_image_is_worked_on_at_two_megapixels(large: bytes) -> None:
    with Image.open(io.BytesIO(large)) as image:
        small = inputs.reduce_image(image)
    assert small.width * small.height <= inputs.MAX_WORKING_PIXELS
    assert small.width / small.height == pytest.approx(WIDTH / HEIGHT, rel=1e-3)


def test_the_mask_of_a_large_image_has_its_size(spec: BundleSpec, large: bytes) -> None:
    mask = np.zeros((TIMES * HEIGHT, TIMES * WIDTH), np.uint8)
    mask[:, : TIMES * WIDTH // 2] = 255
    half = seen_points(spec, CAPTURE | {"image": large, "mask": png(mask)}, fov=FOV)
    by_small = seen_points(spec, CAPTURE | {"mask": png(mask[::TIMES, ::TIMES])}, fov=FOV)
    assert np.nanmax(half[..., 0]) == pytest.approx(np.nanmax(by_small[..., 0]), abs=0.05)
    with pytest.raises(InvalidOption, match="64 × 48 pixels, but the image, upright, has 2560 × 1920"):
        seen_points(spec, CAPTURE | {"image": large, "mask": png(mask[::TIMES, ::TIMES])}, fov=FOV)


@pytest.mark.parametrize("shape", [(1, 65_535), (65_535, 1)])
def test_a_strip_is_made_no_square(spec: BundleSpec, shape: tuple[int, int]) -> None:
    """Padded to one it would take gigabytes."""
    depth = np.full(shape, 1000, np.uint16)
    depth.flat[::3] = 1400
    with pytest.raises(InvalidOption, match="too narrow for the 32 × 32 points that the network sees") as refused:
        seen_points(spec, {"image": png(np.zeros((*shape, 3), np.uint8)), "depth": png(depth)}, fov=FOV)
    assert refused.value.field == "image"


@pytest.mark.parametrize(("side", "min_side"), [(2, 2), (32, 2), (95, 2), (96, 3), (500, 9), (3000, 48), (10_000, 157)])
def test_a_narrow_image_needs_the_pixels_that_its_refusal_names(spec: BundleSpec, side: int, min_side: int) -> None:
    for shape in ((min_side, side), (side, min_side)):
        depth = npy(np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32))
        assert np.isfinite(seen_points(spec, {"image": png(np.zeros((*shape, 3), np.uint8)), "depth": depth}, fov=FOV)).any()
        thin = shape[0] - (shape[0] == min_side), shape[1] - (shape[0] != min_side)
        files = {"image": png(np.zeros((*thin, 3), np.uint8)), "depth": npy(np.ones(thin, np.float32))}
        for extra in ({}, {"mask": png(np.full(thin, 255, np.uint8))}):
            with pytest.raises(InvalidOption, match=f"its shorter side needs at least {min_side}") as refused:
                seen_points(spec, files | extra, fov=FOV)
            assert refused.value.field == "image"


def test_a_strip_above_two_megapixels_is_made_smaller() -> None:
    small = inputs.reduce_image(Image.new("RGB", (10_000_000, 1)))
    assert small.width * small.height <= inputs.MAX_WORKING_PIXELS
