"""Inputs of MCC's encoders beyond the recorded cases: Hypersim's frames and drawn augmentations have no recorded case at all.

Sources: projecting points back into the image, SciPy's rotations, and the conventions of the papers and data sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from models.systems.mcc.scene_inputs import (
    PerspectiveCamera,
    SceneAugmentation,
    box_around,
    capture_to_view,
    depth_to_seen_points,
    normalise_points,
    pad_to_square,
    resize,
    resize_mask,
    rotation_about_axes,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def finite(points: Tensor) -> Tensor:
    return points.isfinite().all(dim=-1)


@pytest.fixture
def capture() -> dict[str, Any]:
    """A picture of 30 × 20 pixels with an object of 12 × 8 in it; distances in millimetres."""
    mask = torch.zeros(30, 20, dtype=torch.uint8)
    mask[10:22, 6:14] = 255
    points = 1000 + 200 * torch.randn(30, 20, 3, generator=generator())
    return {"rgb": torch.rand(30, 20, 3, generator=generator(1)), "points": points, "mask": mask}


def test_a_capture_is_centred_scaled_and_can_be_undone(capture: dict[str, Any]) -> None:
    view = capture_to_view(**capture, image_size=16, seen_size=16, margin=2)  # the crop is 16 rows high: nothing is resized
    seen = view.seen[0]
    on_object = finite(seen)
    assert int(on_object.sum()) == 12 * 8
    points = seen[on_object]
    torch.testing.assert_close(points.mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(points.std(dim=0).mean(), torch.tensor(1.0))
    torch.testing.assert_close((points + view.centre) * view.scale, capture["points"][10:22, 6:14].reshape(-1, 3), atol=1e-2, rtol=1e-5)


def test_image_keeps_background_and_pads_right_or_bottom(capture: dict[str, Any]) -> None:
    view = capture_to_view(**capture, image_size=16, seen_size=16, margin=2)
    image = view.image[0].permute(1, 2, 0)
    assert torch.equal(image[:, :12], capture["rgb"][8:24, 4:16])
    assert (image[:, 12:] == 0).all()
    assert not finite(view.seen[0, :, 12:]).any()
    turned = {name: value.transpose(0, 1) for name, value in capture.items()}
    assert (capture_to_view(**turned, image_size=16, seen_size=16, margin=2).image[0, :, 12:] == 0).all()


def test_the_margin_ends_at_the_edges_of_the_picture(capture: dict[str, Any]) -> None:
    box = box_around(capture["mask"] != 0, 8)
    assert (box.top, box.bottom, box.left, box.right) == (2, 29, 0, 21)
    assert box.crop(capture["rgb"]).shape == (28, 20, 3)


@pytest.mark.parametrize("factor", [2, 3])
def test_resizing_loses_the_edges_of_what_was_seen(factor: int) -> None:
    """Also at exact ratios, where an unseen neighbour has a weight of 0: 0 · ∞ is not a number."""
    grid = torch.zeros(24, 24, 3)
    grid[:12] = torch.inf
    small = finite(resize(grid, 24 // factor)[0])
    assert not small[: 12 // factor].any()
    assert small[12 // factor + 1 :].all()
    assert torch.equal(resize(grid, 24)[0], grid)


def test_points_that_are_not_finite_do_not_count_for_the_scale() -> None:
    points = torch.randn(4, 5, 3, generator=generator())
    holed = points.clone()
    holed[0, 0, 1], holed[2] = torch.nan, torch.inf
    retained = holed[finite(holed)]
    _, scale, centre = normalise_points(holed)
    torch.testing.assert_close(scale, retained.std(dim=0, unbiased=True).mean())
    torch.testing.assert_close(centre, (retained / scale).mean(dim=0))


def test_a_capture_without_points_on_the_object_is_refused(capture: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="points: 0 are finite and on the object"):
        capture_to_view(capture["rgb"], capture["points"] * torch.inf, capture["mask"])


def test_a_mask_of_another_size_is_resized_as_an_8_bit_picture() -> None:
    """Pixels have shares of 1/8, 3/8, 5/8, 7/8 of a neighbour at a factor of 4: of a value of 2 the share of 1/8 rounds to 0."""
    mask = torch.tensor([[0, 0, 255, 255]], dtype=torch.uint8).expand(4, 4)
    assert resize_mask(mask, 16, 16)[0].tolist() == [False] * 6 + [True] * 10
    faint = resize_mask(mask // 127, 16, 16)[0]  # values of 2
    assert faint.tolist() == [False] * 7 + [True] * 9
    assert resize_mask(torch.tensor([[0, 1, 0, 0]], dtype=torch.uint8).expand(4, 4), 2, 2).tolist() == [[True, False]] * 2  # a half is up
    assert torch.equal(resize_mask(mask, 4, 4), mask != 0)


@pytest.fixture
def camera() -> PerspectiveCamera:
    rotation = torch.tensor(Rotation.from_euler("xyz", [[20, -30, 50], [5, 80, -10]], degrees=True).as_matrix()).float()
    return PerspectiveCamera(
        rotation=rotation,
        translation=torch.tensor([[0.1, -0.2, 3.0], [0.0, 1.0, 5.0]]),
        focal=torch.tensor([[2.0, 2.5], [1.5, 1.0]]),
        principal=torch.tensor([[0.05, -0.1], [0.0, 0.2]]),
    )


def test_seen_points_project_back_to_their_pixels(camera: PerspectiveCamera) -> None:
    depth = 1 + torch.rand(2, 1, 8, 8, generator=generator())
    world = depth_to_seen_points(depth, torch.ones_like(depth), camera, seen_size=8)
    x, y, z = (world @ camera.rotation[:, None] + camera.translation[:, None, None]).unbind(dim=-1)
    torch.testing.assert_close(z, depth[:, 0])
    left = camera.focal[:, 0, None, None] * x / z + camera.principal[:, 0, None, None]
    up = camera.focal[:, 1, None, None] * y / z + camera.principal[:, 1, None, None]
    centres = torch.tensor([7, 5, 3, 1, -1, -3, -5, -7]) / 8  # +1 is the left and upper edge
    torch.testing.assert_close(left, centres.expand(2, 8, 8), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(up, centres.unsqueeze(1).expand(2, 8, 8), atol=1e-5, rtol=1e-5)


def test_depth_counts_where_it_is_known_and_on_the_object(camera: PerspectiveCamera) -> None:
    depth, foreground = torch.ones(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    depth[:, :, 0], foreground[:, :, :, 0], foreground[:, :, :, 1] = 0, 0.5, 0.51
    seen = finite(depth_to_seen_points(depth, foreground, camera, seen_size=8))
    assert not seen[:, 0].any()
    assert not seen[:, :, 0].any()
    assert seen[:, 1:, 1:].all()


def test_missing_depth_bleeds_into_its_neighbours_when_resized(camera: PerspectiveCamera) -> None:
    """Depth is resized before it is masked, so next to a hole it comes out too small: as trained."""
    depth = torch.full((2, 1, 9, 9), 4.0)
    depth[:, :, :, :2] = 0
    world = depth_to_seen_points(depth, torch.ones_like(depth), camera, seen_size=6)
    z = (world @ camera.rotation[:, None] + camera.translation[:, None, None])[..., 2]
    torch.testing.assert_close(z[:, :, 1], torch.full((2, 6), 3.0))  # the centre is at 1.75: a quarter of it is the hole
    torch.testing.assert_close(z[:, :, 2:], torch.full((2, 6, 4), 4.0))


def test_rotations_are_scipy_s() -> None:
    degrees = torch.tensor([37.0, -120.0, 175.0])
    expected = Rotation.from_euler("xyz", degrees.numpy(), degrees=True).as_matrix()  # lower case: about fixed axes
    torch.testing.assert_close(rotation_about_axes(degrees), torch.tensor(expected), atol=1e-6, rtol=0)


def test_augmentation_scales_then_shifts_then_turns_then_flips() -> None:
    augmentation = SceneAugmentation(torch.tensor([2.0, 1, 1]), torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 90]), flip=True)
    moved = augmentation.transform_points(torch.tensor([1.0, 5.0, 7.0]))
    torch.testing.assert_close(moved, torch.tensor([5.0, 3.0, 7.0]))  # (3, 5, 7) turned to (-5, 3, 7)


def test_seen_points_pictures_and_queries_are_augmented_alike() -> None:
    augmentation = SceneAugmentation(torch.tensor([0.9, 1.1, 1]), torch.tensor([1.0, 0, 0.2]), torch.tensor([10.0, 20, 30]), flip=True)
    seen = torch.randn(2, 4, 4, 3, generator=generator())
    seen[0, 1, 0] = torch.inf
    moved = augmentation.transform_seen(seen)
    assert not finite(moved[0, 1, 3])
    assert finite(moved).sum() == 31
    torch.testing.assert_close(moved[1, 2, 3], augmentation.transform_points(seen[1, 2, 0]))
    assert torch.equal(augmentation.transform_images(seen.permute(0, 3, 1, 2)), seen.flip(2).permute(0, 3, 1, 2))


def test_drawn_augmentations_stay_in_their_ranges() -> None:
    source = generator()
    drawn = [SceneAugmentation.draw(source, moved=True) for _ in range(300)]
    scale, shift, degrees = (torch.stack([getattr(one, name) for one in drawn]) for name in ("scale", "shift", "degrees"))
    assert 0.8 <= scale.min() < 0.82 < 1.18 < scale.max() <= 1.2
    assert -1 <= shift.min() < -0.95 < 0.95 < shift.max() <= 1
    assert -180 <= degrees.min() < -170 < 170 < degrees.max() <= 180
    assert torch.equal(degrees, degrees.round())
    assert 100 < sum(one.flip for one in drawn) < 200
    still = SceneAugmentation.draw(generator(), moved=False)
    assert torch.equal(still.scale, drawn[0].scale)
    assert (still.shift == 0).all()
    assert (still.degrees == 0).all()


def test_a_square_is_left_as_it_is() -> None:
    grid = torch.rand(5, 5, 3, generator=generator())
    assert torch.equal(pad_to_square(grid, 0.0), grid)
