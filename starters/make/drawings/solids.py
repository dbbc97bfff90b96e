"""Solids by their signed distance, and the picture and depth that a camera sees of them, found by marching along its rays.

Lengths are in metres, y is up. P stands for the number of points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Point = Sequence[float] | NDArray[Any]
Distance = Callable[[Floats], Floats]
"""(P, 3) → (P,): how far outside the solid a point lies; negative inside."""

STEPS, NEAR_ENOUGH, CAUTION = 80, 0.0005, 0.9
"""A ray takes so many steps at most, has arrived at this distance, and each step goes this share of the distance."""
SLOPE = 0.001
"""Over which normals are measured."""
LIGHT = np.array([0.39, 0.78, 0.49], np.float32)


@dataclass(frozen=True)
class Solid:
    colour: tuple[int, int, int]
    distance: Distance
    stripes: tuple[tuple[int, int, int], float] | None = None
    """A second colour, and the height of a stripe."""

    def colours(self, points: Floats) -> Floats:
        """(P, 3) → (P, 3), 0 to 255."""
        plain = np.tile(np.array(self.colour, np.float32), (len(points), 1))
        if self.stripes is not None:
            other, height = self.stripes
            plain[np.floor(points[:, 1] / height) % 2 == 1] = other
        return plain


@dataclass(frozen=True)
class DrawingCamera:
    """`fov` is horizontal, in degrees."""

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    fov: float
    width: int
    height: int

    def rays(self) -> tuple[Floats, Floats]:
        """Directions of length 1 (height · width, 3), row by row, and how far along the optical axis each goes in a metre."""
        forward = _unit(np.subtract(self.target, self.eye))
        right = _unit(np.cross(forward, (0, 1, 0)))
        focal = self.width / 2 / np.tan(np.radians(self.fov) / 2)
        across = (np.arange(self.width) + 0.5 - self.width / 2) / focal
        up = -(np.arange(self.height) + 0.5 - self.height / 2) / focal
        rays = forward + across[None, :, None] * right + up[:, None, None] * np.cross(right, forward)
        rays = _unit(rays.reshape(-1, 3)).astype(np.float32)
        return rays, (rays @ forward).astype(np.float32)


@dataclass(frozen=True)
class Drawing:
    colours: NDArray[np.uint8]
    """(H, W, 3), black where nothing is."""
    depth: Floats
    """(H, W), along the optical axis; 0 where nothing is."""


def render(solids: Sequence[Solid], camera: DrawingCamera, reach: float = 10.0) -> Drawing:
    """Draw what lies within `reach` of the camera."""
    rays, axis = camera.rays()
    eye = np.array(camera.eye, np.float32)
    travelled = np.zeros(len(rays), np.float32)
    arrived = np.zeros(len(rays), bool)
    going = np.arange(len(rays))
    for _ in range(STEPS):
        left = _nearest(solids, eye + travelled[going, None] * rays[going])
        arrived[going[left < NEAR_ENOUGH]] = True
        travelled[going] += CAUTION * left
        going = going[(left >= NEAR_ENOUGH) & (travelled[going] < reach)]
    points = eye + travelled[arrived, None] * rays[arrived]
    colours, depth = np.zeros((len(rays), 3), np.uint8), np.zeros(len(rays), np.float32)
    colours[arrived] = _shaded(solids, points)
    depth[arrived] = (travelled * axis)[arrived]
    shape = (camera.height, camera.width)
    return Drawing(colours.reshape(*shape, 3), depth.reshape(shape))


def capsule(start: Point, end: Point, radius: float, end_radius: float | None = None) -> Distance:
    """A round stick, which may grow thinner."""
    a, along = np.asarray(start, np.float32), np.subtract(end, start).astype(np.float32)
    thinner = radius if end_radius is None else end_radius

    def distance(points: Floats) -> Floats:
        share = np.clip((points - a) @ along / (along @ along), 0, 1)
        far: Floats = np.linalg.norm(points - a - share[:, None] * along, axis=1) - (radius + (thinner - radius) * share)
        return far

    return distance


def ellipsoid(centre: Point, radii: Point) -> Distance:
    """Near its surface, and never too far."""
    middle, sizes = np.asarray(centre, np.float32), np.asarray(radii, np.float32)

    def distance(points: Floats) -> Floats:
        far: Floats = (np.linalg.norm((points - middle) / sizes, axis=1) - 1) * sizes.min()
        return far

    return distance


def cylinder(centre: Point, radius: float, half_height: float) -> Distance:
    """It stands upright."""
    middle = np.asarray(centre, np.float32)

    def distance(points: Floats) -> Floats:
        away = points - middle
        outside = np.stack([np.hypot(away[:, 0], away[:, 2]) - radius, np.abs(away[:, 1]) - half_height])
        far: Floats = np.minimum(outside.max(axis=0), 0) + np.linalg.norm(np.maximum(outside, 0), axis=0)
        return far

    return distance


def ring(centre: Point, radius: float, thickness: float) -> Distance:
    """It stands upright, its axis along z."""
    middle = np.asarray(centre, np.float32)

    def distance(points: Floats) -> Floats:
        away = points - middle
        far: Floats = np.hypot(np.hypot(away[:, 0], away[:, 1]) - radius, away[:, 2]) - thickness
        return far

    return distance


def without(solid: Distance, hole: Distance) -> Distance:
    return lambda points: np.maximum(solid(points), -hole(points))


def _nearest(solids: Sequence[Solid], points: Floats) -> Floats:
    nearest: Floats = np.min([solid.distance(points) for solid in solids], axis=0)
    return nearest


def _shaded(solids: Sequence[Solid], points: Floats) -> NDArray[np.uint8]:
    which = np.argmin([solid.distance(points) for solid in solids], axis=0)
    colours = np.stack([solid.colours(points) for solid in solids])[which, np.arange(len(points))]
    offsets = np.eye(3, dtype=np.float32) * SLOPE
    normals = _unit(np.stack([_nearest(solids, points + step) - _nearest(solids, points - step) for step in offsets], axis=1))
    bright = 0.45 + 0.5 * np.clip(normals @ LIGHT, 0, 1) + 0.1 * np.clip(normals[:, 1], 0, 1)
    shaded: NDArray[np.uint8] = np.clip(colours * bright[:, None], 0, 255).astype(np.uint8)
    return shaded


def _unit(vectors: NDArray[Any]) -> NDArray[Any]:
    lengths: NDArray[Any] = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
    return lengths
