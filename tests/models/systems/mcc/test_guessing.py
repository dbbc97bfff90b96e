"""Seen, carved and joined with a network's cells: one wall, never in front of what was seen, never outside the silhouette."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from models.bundle_schema import QuerySpace
from models.systems.mcc import surfaces
from models.systems.mcc.lattice import Lattice
from models.systems.mcc.surfaces import HiddenSurface, VisibleSurface, fit_camera, reconstruct_hidden_surface

SPACE = QuerySpace(extent=2.0, spacing=0.1, reach=0.1)
LATTICE = Lattice(SPACE, 0.1)
AWAY, SIDE, FOCAL = 6.0, 96, 150.0
"""The camera's distance from the middle, and its image, in pixels."""
CAMERA = np.array([FOCAL, FOCAL, SIDE / 2, SIDE / 2], np.float32)
FRAME = np.array([0, 0, SIDE, SIDE], np.float32)
CENTRE = np.array([0, 0, AWAY], np.float32)


def rays() -> np.ndarray:
    """Return the rays with z = 1: (SIDE, SIDE, 3)."""
    across = (np.arange(SIDE) + 0.5 - SIDE / 2) / FOCAL
    return np.stack([*np.meshgrid(across, across), np.ones((SIDE, SIDE))], axis=-1)


def ball(radius: float = 1.2) -> VisibleSurface:
    """How the camera sees a ball in the middle."""
    ray = rays()
    square = (ray**2).sum(axis=-1)
    hit = AWAY**2 - square * (AWAY**2 - radius**2)
    depth = np.where(hit > 0, (AWAY - np.sqrt(np.maximum(hit, 0))) / square, np.nan)
    return VisibleSurface(depth.astype(np.float32), hit > 0, CAMERA, FRAME, CENTRE)


def everywhere() -> tuple[np.ndarray, np.ndarray]:
    """Return all cells and their positions."""
    cells = np.arange(LATTICE.index_count, dtype=np.int32)
    return cells, LATTICE.points(cells)


def guess_surface(front: VisibleSurface, occupancy: np.ndarray, lattice: Lattice = LATTICE) -> HiddenSurface:
    cells = np.arange(lattice.index_count, dtype=np.int32)
    colours = np.where(occupancy[:, None] > 0.1, np.array([10, 20, 30]), 0).astype(np.uint8)
    return reconstruct_hidden_surface(lattice, cells, occupancy.astype(np.float32), colours, 0.1, front)


def shell(points: np.ndarray, radius: float = 1.2) -> np.ndarray:
    """0.1, the threshold, as far from the sphere as the reach."""
    adjacent = np.abs(np.linalg.norm(points, axis=1) - radius)
    return 1 / (1 + np.exp(30 * (adjacent - SPACE.reach)) * 9)


def test_a_shell_becomes_one_wall_that_closes_what_was_seen() -> None:
    front, (_, points) = ball(), everywhere()
    found = guess_surface(front, shell(points))
    middle = found.vertices[~found.joins_visible]
    assert np.linalg.norm(middle, axis=1) == pytest.approx(1.2, abs=0.12)
    mesh = trimesh.Trimesh(found.vertices, found.faces, process=False)
    along = mesh.triangles[(mesh.triangles[..., :2].min(axis=1) < [0.03, 0.02]).all(axis=1)]
    along = along[(along[..., :2].max(axis=1) > [0.03, 0.02]).all(axis=1)]  # those around a line of sight
    assert len(along) and along[..., 2] == pytest.approx(1.2, abs=0.12)
    assert (found.colours == [10, 20, 30]).all()
    seen = front.mesh(0.1)
    full = np.concatenate([found.vertices, seen.vertices])
    assert full[:, 2].min() == pytest.approx(-1.2, abs=0.05) and full[:, 2].max() == pytest.approx(1.2, abs=0.12)


def test_where_the_network_says_nothing_there_is_no_wall() -> None:
    front, (_, points) = ball(), everywhere()
    assert not len(guess_surface(front, np.zeros(len(points))).faces)
    half = guess_surface(front, np.where(points[:, 0] < 0, shell(points), 0))
    assert len(half.faces) and half.vertices[~half.joins_visible][:, 0].max() < 0.3


@pytest.mark.parametrize("seed", range(8))
def test_hidden_surface_is_behind_visible_one_and_in_silhouette(seed: int) -> None:
    """The distance is more than the spacing, whatever the network says and however rugged its surface is."""
    dice = np.random.default_rng(seed)
    coarse = AWAY + dice.uniform(-1, 1, (8, 8)).repeat(SIDE // 8, axis=0).repeat(SIDE // 8, axis=1)
    mask = np.zeros((SIDE, SIDE), bool)
    for top, left in dice.integers(8, 60, (3, 2)):
        mask[top : top + dice.integers(4, 30), left : left + dice.integers(4, 30)] = True
    unseen = dice.random((SIDE, SIDE)) < dice.uniform(0, 0.5)
    front = VisibleSurface(np.where(mask & ~unseen, coarse, np.nan).astype(np.float32), mask, CAMERA, FRAME, CENTRE)
    blobs = dice.random((10, 10, 10)).repeat(4, axis=0).repeat(4, axis=1).repeat(4, axis=2).ravel()
    found = guess_surface(front, np.where(blobs > dice.uniform(0.2, 0.9), blobs, 0))
    assert _impossible(front, found.vertices, 1.01 * LATTICE.pitch) == 0
    assert _impossible(front, front.mesh(LATTICE.pitch).vertices, 1.01 * LATTICE.pitch) == 0


def _impossible(front: VisibleSurface, points: np.ndarray, tolerance: float) -> int:
    """Count the points farther than the tolerance from all possible places, by a search, not by the tested code."""
    ray = rays()
    count = 0
    for point in points + CENTRE:
        if np.abs(point[:2] / point[2] * FOCAL).max() >= SIDE / 2 - 4:  # near to where the camera did not look
            continue
        away = np.hypot(ray[..., 0] * point[2] - point[0], ray[..., 1] * point[2] - point[1])
        near = away <= tolerance + point[2] / FOCAL  # plus the width of a pixel
        possible = near & front.mask & ~(front.depth > point[2] + tolerance)
        count += not possible.any()
    return count


def test_a_field_of_too_many_cells_is_taken_in_larger_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    fine, front = Lattice(SPACE, 0.05), ball()
    occupancy = shell(fine.points(np.arange(fine.index_count, dtype=np.int32)))
    full = guess_surface(front, occupancy, fine)
    monkeypatch.setattr(surfaces, "MAX_FIELD_CELLS", fine.index_count // 8)
    coarse = guess_surface(front, occupancy, fine)
    assert 0 < len(coarse.faces) < len(full.faces) / 2
    assert _impossible(front, coarse.vertices[::10], 1.01 * fine.pitch) == 0
    assert np.linalg.norm(coarse.vertices[~coarse.joins_visible], axis=1) == pytest.approx(1.2, abs=0.15)


def test_every_pixel_is_a_square_and_jumps_tear_it() -> None:
    depth = np.full((4, 6), AWAY, np.float32)
    depth[:, 3:] += 1
    depth[0, 0] = np.nan
    front = VisibleSurface(depth, np.ones((4, 6), bool), CAMERA, np.array([0, 0, 6, 4], np.float32), CENTRE)
    mesh = front.mesh(0.1)
    assert len(mesh.faces) == 2 * 23 and len(mesh.vertices) == 4 * 5 + 5 * 4 - 1
    assert set(np.round(np.ptp((mesh.vertices[mesh.faces])[..., 2], axis=1), 3)) == {0.0}
    facing = np.cross(*(mesh.vertices[mesh.faces][:, side] - mesh.vertices[mesh.faces][:, 0] for side in (1, 2)))
    assert (facing[:, 2] < 0).all()  # towards the camera
    assert front.points.shape == (23, 3) and (mesh.pixels < 23).all()


def test_the_camera_of_points_is_found_where_there_is_one() -> None:
    front = ball()
    seen = np.isfinite(front.depth)
    points = (rays() * np.nan_to_num(front.depth, nan=1)[..., None]).astype(np.float32)
    np.testing.assert_allclose(fit_camera(points, seen), CAMERA, rtol=1e-3)
    flat = points * np.array([0, 0, 1], np.float32) + rays() * np.array([5, 5, 0])
    assert fit_camera(flat.astype(np.float32) + np.array([0, 0, 9], np.float32) * (np.arange(SIDE) % 2)[:, None], seen) is None
    assert fit_camera(-points, seen) is None
