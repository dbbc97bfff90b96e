"""Errors of a depth sensor: noise, missing edges and holes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.arrays import Float32Array

_NOISE = (0.001, 0.015)
"""Minimum and maximum standard deviation of the noise, in radii of the object."""
_STEP = 0.15
"""Minimum step of depth between neighbours at an edge, in radii."""


def add_sensor_noise(depth: Float32Array, generator: np.random.Generator) -> Float32Array:
    """Add a sensor's errors to a depth map (n, n), in radii of the object, 0 for none: white and smooth noise, and holes."""
    side = len(depth)
    white, smooth = np.exp(generator.uniform(np.log(_NOISE[0]), np.log(_NOISE[1]), 2))
    noise = white * generator.normal(size=depth.shape) + smooth * _smooth(generator, side)
    lost = generator.random(depth.shape) < generator.uniform(0, 0.05)
    if generator.random() < 0.5:
        lost |= _edges(depth) & (generator.random(depth.shape) < generator.uniform(0, 1))
    if generator.random() < 0.5:
        field = _smooth(generator, side)
        lost |= field > np.quantile(field, 1 - generator.uniform(0, 0.2))
    measured = (depth > 0) & ~lost
    return np.where(measured, depth + noise, 0).astype(np.float32)


def _smooth(generator: np.random.Generator, side: int, cells: int = 8) -> Float32Array:
    """Draw a smooth field (side, side), about normal, interpolated between a few values."""
    coarse = generator.normal(size=(cells + 1, cells + 1))
    place = np.linspace(0, cells, side, endpoint=False)
    first, share = place.astype(np.int64), place % 1
    rows = coarse[first] * (1 - share)[:, None] + coarse[first + 1] * share[:, None]
    return np.asarray(rows[:, first] * (1 - share) + rows[:, first + 1] * share, np.float32)


def _edges(depth: Float32Array) -> NDArray[np.bool_]:
    """Return whether a neighbour is much nearer, much farther or not on the object, (n, n)."""
    edges = np.zeros(depth.shape, np.bool_)
    for axis in (0, 1):
        jump = np.abs(np.diff(depth, axis=axis)) > _STEP
        before = [slice(None)] * 2
        after = [slice(None)] * 2
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        edges[tuple(before)] |= jump
        edges[tuple(after)] |= jump
    return edges
