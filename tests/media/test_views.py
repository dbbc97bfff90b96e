"""Views that the gateway builds of a capture without torch equal those of the network's training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.bundle_schema import QuerySpace
from models.systems.mcc import scene_inputs
from server.media import mcc_inputs
from server.media.depth import PinholeCamera
from server.media.limits import InvalidPart
from training.data.rgbd_scenes import unproject

HEIGHT, WIDTH = 60, 90


def capture(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an image, points in metres with a few that are missing, and the mask of an object that reaches the right edge."""
    rng = np.random.default_rng(seed)
    points = rng.normal([0.3, -0.2, 2.0], 0.3, (HEIGHT, WIDTH, 3)).astype(np.float32)
    points[5:9, 50:60] = np.nan
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:40, 30:] = True
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), points, mask


@pytest.mark.parametrize(("source", "size", "seen"), [(None, 32, 16), (72, 32, 16), (None, 48, 24)])
def test_an_object_is_seen_as_in_training(source: int | None, size: int, seen: int) -> None:
    image, points, mask = capture()
    made = mcc_inputs.build_view(image, points, mask, QuerySpace(margin=6, source_size=source), image_size=size, seen_size=seen)
    expected = scene_inputs.capture_to_view(
        torch.from_numpy(image).float() / 255,
        torch.from_numpy(points),
        torch.from_numpy(mask.astype(np.uint8)),
        image_size=source or size,
        seen_size=seen,
        margin=6,
    )
    pixels = expected.image
    if source:
        pixels = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(made.pixels, 255 * pixels[0].permute(1, 2, 0).numpy(), atol=0.51)
    assert made.scale == pytest.approx(float(expected.scale), rel=1e-5)
    np.testing.assert_allclose(made.centre, expected.centre.numpy(), rtol=1e-4)
    found, finite = np.isfinite(made.seen).all(axis=2), expected.seen[0].isfinite().all(dim=-1).numpy()
    np.testing.assert_array_equal(found, finite)
    assert 0 < found.sum() < found.size
    np.testing.assert_allclose(made.seen[found], expected.seen[0].numpy()[finite], atol=1e-4)
    some = points[mask][:5]
    np.testing.assert_allclose(mcc_inputs.to_metres(some / made.scale - made.centre, made.scale, made.centre), some, atol=1e-5)


def test_a_scene_is_seen_as_in_training() -> None:
    image, points, _ = capture()
    mask = np.isfinite(points).all(axis=2)
    made = mcc_inputs.build_view(image, points, mask, QuerySpace(region="half-ball"), image_size=32, seen_size=16)
    expected = scene_inputs.resize(scene_inputs.CropBox(0, HEIGHT - 1, 15, 15 + HEIGHT - 1).crop(torch.from_numpy(points)), 16)
    scale = float(scene_inputs.point_spread(expected))
    assert made.scale == pytest.approx(scale, rel=1e-5) and not made.centre.any()
    found = np.isfinite(made.seen).all(axis=2)
    np.testing.assert_array_equal(found, expected[0].isfinite().all(dim=-1).numpy())
    np.testing.assert_allclose(made.seen[found], (expected[0].numpy() / scale)[found], atol=1e-5)


def test_depth_is_unprojected_as_in_training() -> None:
    depth = np.random.default_rng(0).uniform(0.5, 2, (HEIGHT, WIDTH)).astype(np.float32)
    made = PinholeCamera(80.0, 81.0, 44.0, 31.0).unproject(depth)
    np.testing.assert_allclose(made, unproject(torch.from_numpy(depth), (80.0, 81.0), (44.0, 31.0)).numpy(), atol=1e-6)


def test_depth_too_sparse_to_be_resized_is_refused() -> None:
    image, points, mask = capture()
    points[:, ::2] = np.nan
    points[::2] = np.nan
    with pytest.raises(InvalidPart, match="too few neighbouring pixels were seen"):
        mcc_inputs.build_view(image, points, mask, QuerySpace(), image_size=32, seen_size=16)
