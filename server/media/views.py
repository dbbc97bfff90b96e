"""Image and seen points as MCC's encoders take them (arXiv 2301.08247): the same numbers as `models.mcc.scenes` gives, without torch.

Maps are resized bilinearly without antialiasing, which carries NaN into every pixel that has an unseen neighbour, as in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.spec import Space
from server.media.depth import Points
from server.media.limits import InvalidPart

Mask = NDArray[np.bool_]
SLIM = 4
"""Times as wide as high, from which on columns are chosen before rows."""


@dataclass(frozen=True)
class View:
    pixels: NDArray[np.uint8]
    """(S, S, 3), of the network's size."""
    seen: Points
    """(n, n, 3) in normalised units, NaN where there is none."""
    scale: float
    """Metres in a unit."""
    centre: NDArray[np.float32]
    """(3,), in units: what was taken off the points after they were scaled."""


def to_metres(points: NDArray[np.float32], scale: float, centre: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalised (P, 3) → in the camera's frame."""
    return ((points + centre) * np.float32(scale)).astype(np.float32)


def view(image: NDArray[np.uint8], points: Points, mask: Mask, space: Space, *, image_size: int, seen_size: int) -> View:
    """image (H, W, 3), points (H, W, 3), mask (H, W) of what counts. Raises InvalidPart where too few points are seen.

    Of a cube: cropped to the mask with a margin and padded to a square, points centred. Of a half ball: the square in the middle, points
    around the camera.
    """
    objects = np.where(mask[..., None], points, np.float32(np.nan))
    if space.region == "cube":
        box = around(mask, space.margin)
        scale, centre = _normalisation(objects)
        normalised = np.asarray(objects[box] / np.float32(scale) - centre, np.float32)
        seen = resize(normalised, seen_size, np.nan)
        cropped = image[box]
    else:
        box = middle(*mask.shape)
        seen = resize(objects[box], seen_size)
        scale, centre = _normalisation(seen)[0], np.zeros(3, np.float32)
        seen, cropped = seen / np.float32(scale), image[box]
    if not np.isfinite(seen).all(axis=2).any():
        raise InvalidPart(f"no point is left when the map is resized to {seen_size} × {seen_size}: too few neighbouring pixels were seen")
    pixels = resize(cropped, space.source_size or image_size)
    return View(np.rint(resize(pixels, image_size)).astype(np.uint8), seen, scale, centre)


def resize(grid: NDArray[np.float32] | NDArray[np.uint8], size: int, fill: float = 0.0) -> NDArray[np.float32]:
    """(H, W, C) → (size, size, C), bilinearly between pixels' centres, as if it were padded with `fill` to a square at the bottom or on the
    right; of a long strip no square is made. One that has the size already loses no edges."""
    if grid.shape[:2] == (size, size):
        return grid.astype(np.float32)
    length = max(grid.shape[:2])
    with np.errstate(invalid="ignore"):
        if grid.shape[1] > SLIM * grid.shape[0]:
            return _along(_along(grid, size, 1, length, fill), size, 0, length, fill)
        return _along(_along(grid, size, 0, length, fill), size, 1, length, fill)


def _along(grid: NDArray[np.float32] | NDArray[np.uint8], size: int, axis: int, length: int, fill: float) -> NDArray[np.float32]:
    """length: of the axis with what is padded."""
    ratio = np.float32(length / size)
    at = np.maximum((np.arange(size, dtype=np.float32) + np.float32(0.5)) * ratio - np.float32(0.5), np.float32(0))
    low = np.minimum(at.astype(np.intp), length - 1)
    high = np.minimum(low + 1, length - 1)
    share = (at - low).astype(np.float32).reshape((-1,) + (1,) * (grid.ndim - 1 - axis))
    below, above = (_padded(grid, index, axis, fill) for index in (low, high))  # only what is needed of a large image
    mixed: NDArray[np.float32] = below * (np.float32(1) - share) + above * share
    return mixed


def _padded(grid: NDArray[np.float32] | NDArray[np.uint8], index: NDArray[np.intp], axis: int, fill: float) -> NDArray[np.float32]:
    """Values at these indices of an axis; `fill` beyond its end."""
    there = grid.shape[axis]
    found: NDArray[np.float32] = grid.take(np.minimum(index, there - 1), axis).astype(np.float32)
    if index[-1] >= there:
        found[(slice(None),) * axis + (index >= there,)] = fill
    return found


def _normalisation(points: Points) -> tuple[float, NDArray[np.float32]]:
    """Scale: the standard deviation of the points, unbiased, averaged over the axes; centre: the mean of the scaled ones. Raises
    InvalidPart."""
    found = points[np.isfinite(points).all(axis=2)].astype(np.float64)  # (P, 3)
    if len(found) < 2:
        raise InvalidPart(f"{len(found)} points are seen; two are needed at least")
    scale = float(found.std(axis=0, ddof=1).mean())
    if scale <= 0:
        raise InvalidPart(f"all {len(found)} points that are seen are one and the same")
    return scale, (found.mean(axis=0) / scale).astype(np.float32)


def around(mask: Mask, margin: int) -> tuple[slice, slice]:
    """Rows and columns of what is true, with a margin."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(max(rows[0] - margin, 0), rows[-1] + margin + 1), slice(max(columns[0] - margin, 0), columns[-1] + margin + 1)


def middle(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the largest square in the middle."""
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)
