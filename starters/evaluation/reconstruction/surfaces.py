"""Surfaces as points: how they are compared, and two that need no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from models.arrays import Float32Array
from models.systems.mcc.queries import harmonic_mean


@dataclass(frozen=True)
class Match:
    """Shares in 0..1, all 0 if nothing was reconstructed (arXiv 2301.08247, section 4)."""

    precision: float
    """Share of the reconstructed points that are near a true one."""
    recall: float
    """Share of the true points that are near a reconstructed one."""

    @property
    def f1(self) -> float:
        return harmonic_mean(self.precision, self.recall)


class Truth:
    """True surface of one view."""

    def __init__(self, points: Float32Array, distance: float) -> None:
        """points: (P, 3). distance: maximum distance of matching points."""
        self.points, self.distance = points, distance
        self._tree = cKDTree(points)

    def match(self, points: Float32Array) -> Match:
        if not len(points):
            return Match(0.0, 0.0)
        precision = (self._tree.query(points)[0] < self.distance).mean()
        return Match(float(precision), float((cKDTree(points).query(self.points)[0] < self.distance).mean()))

    def matches(self, points: Float32Array, probabilities: npt.NDArray[np.float32], thresholds: Sequence[float]) -> list[Match]:
        """Match the points above each threshold, with one search for all."""
        is_candidate = probabilities > min(thresholds)
        points, probabilities = points[is_candidate], probabilities[is_candidate]
        if not len(points):
            return [Match(0.0, 0.0) for _ in thresholds]
        near = self._tree.query(points)[0] < self.distance  # (P,)
        around = cKDTree(points).query_ball_point(self.points, np.nextafter(self.distance, 0))
        best = np.array([probabilities[found].max() if found else 0.0 for found in around])  # (G,)
        found_by = [(probabilities > threshold, best > threshold) for threshold in thresholds]
        return [Match(float(near[above].mean()) if above.any() else 0.0, float(met.mean())) for above, met in found_by]


def sample_surface(vertices: Float32Array, faces: npt.NDArray[np.int64], density: float, generator: np.random.Generator) -> Float32Array:
    """Sample points (P, 3) of triangles, `density` per unit of area."""
    if not len(faces):
        return np.empty((0, 3), np.float32)
    corners = vertices[faces]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    areas = np.linalg.norm(np.cross(first, second), axis=1) / 2
    chosen = generator.choice(len(faces), int(areas.sum() * density) + 1, p=areas / areas.sum())
    along, across = generator.random((2, len(chosen), 1))
    beyond = along + across > 1
    along, across = np.where(beyond, 1 - along, along), np.where(beyond, 1 - across, across)
    points = corners[chosen, 0] + along * first[chosen] + across * second[chosen]
    return np.asarray(points, np.float32)


def extrude(seen: Float32Array, valid: npt.NDArray[np.bool_], camera: Float32Array, depth: float, step: float) -> Float32Array:
    """Return visible points (n, n, 3), the same moved away from the camera (3,) by `depth`, and walls between both: (P, 3).

    step: spacing of points of the walls.
    """
    away = seen - camera
    away = away / np.linalg.norm(away, axis=-1, keepdims=True)  # (n, n, 3)
    padded = np.pad(valid, 1)
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    outline = valid & ~surrounded
    walls = [seen[outline] + length * away[outline] for length in np.arange(step, depth, step)]
    return np.concatenate([seen[valid], *walls, seen[valid] + depth * away[valid]]).astype(np.float32)
