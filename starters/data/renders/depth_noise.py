"""Errors of a depth sensor: noise, missing edges and holes."""

from __future__ import annotations

import numpy as np

from starters.data.renders.raster import Floats

_NOISE = (0.001, 0.015)
"""Smallest and largest standard deviation of the noise, in radii of the object."""
_STEP = 0.15
"""A jump of depth between neighbours, in radii, that makes an edge."""


def sensed(depth: Floats, generator: np.random.Generator) -> Floats:
    """(n, n), 0 where nothing is seen → the same with white and smooth noise, and 0 where the sensor found nothing.

    The depth is in radii of the object.
    """
    side = len(depth)
    white, smooth = np.exp(generator.uniform(np.log(_NOISE[0]), np.log(_NOISE[1]), 2))
    noise = white * generator.normal(size=depth.shape) + smooth * _smooth(generator, side)
    lost = generator.random(depth.shape) < generator.uniform(0, 0.05)
    if generator.random() < 0.5:
        lost |= _edges(depth) & (generator.random(depth.shape) < generator.uniform(0, 1))
    if generator.random() < 0.5:
        field = _smooth(generator, side)
        lost |= field > np.quantile(field, 1 - generator.uniform(0, 0.2))
    kept = (depth > 0) & ~lost
    return np.where(kept, depth + noise, 0).astype(np.float32)


def _smooth(generator: np.random.Generator, side: int, cells: int = 8) -> Floats:
    """(side, side), about normal, interpolated between a few values."""
    coarse = generator.normal(size=(cells + 1, cells + 1))
    place = np.linspace(0, cells, side, endpoint=False)
    first, share = place.astype(np.int64), place % 1
    rows = coarse[first] * (1 - share)[:, None] + coarse[first + 1] * share[:, None]
    return np.asarray(rows[:, first] * (1 - share) + rows[:, first + 1] * share, np.float32)


def _edges(depth: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """(n, n), where a neighbour is much nearer, much farther or not on the object."""
    edges = np.zeros(depth.shape, np.bool_)
    for axis in (0, 1):
        jump = np.abs(np.diff(depth, axis=axis)) > _STEP
        before = [slice(None)] * 2
        after = [slice(None)] * 2
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        edges[tuple(before)] |= jump
        edges[tuple(after)] |= jump
    return edges
