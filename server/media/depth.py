"""Depth maps and maps of points → the point seen in each pixel of an image, float32 (H, W, 3), NaN where there is none.

The frame is the camera's: x to the right, y down, z forward, in metres. Depth is z, not the length of the ray. The centre of the first
pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from server.media import npy
from server.media.images import CorruptImage, ImageDecoder, ImageError, TooManyPixels, sniff
from server.media.limits import ExcessivePart, InvalidPart

PointMap = NDArray[np.float32]
T = TypeVar("T", bound=np.generic)

MILLIMETRES = 1000.0
"""Default steps of a 16-bit depth map in a metre."""
MAX_DEPTH_M = 1e6
"""Maximum distance of a valid measurement, in metres."""
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")
ASPECT = 0.01
"""Maximum relative difference between the aspect ratios of a map and its image: sides are whole numbers."""


@dataclass(frozen=True)
class PinholeCamera:
    """Focal lengths and principal point in pixels of an image."""

    fx: float
    fy: float
    cx: float
    cy: float

    def rescale(self, across: float, down: float) -> PinholeCamera:
        """Return the camera of the image in another size."""
        return PinholeCamera(self.fx * across, self.fy * down, self.cx * across, self.cy * down)

    def unproject(self, depth: NDArray[np.float32]) -> PointMap:
        """Depth (H, W) in metres → (H, W, 3); NaN where depth is NaN, infinite where float32 ends."""
        height, width = depth.shape
        points = np.empty((height, width, 3), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            points[..., 0] = depth * ((np.arange(width) + 0.5 - self.cx) / self.fx).astype(np.float32)
            points[..., 1] = depth * ((np.arange(height) + 0.5 - self.cy) / self.fy).astype(np.float32)[:, None]
        points[..., 2] = depth
        return points


def focal_length(fov: float, width: int) -> float:
    """Return the focal length in pixels for a horizontal field of view in degrees."""
    return width / 2 / math.tan(math.radians(fov) / 2)


def read_depth(data: bytes, decoder: ImageDecoder, scale: float | None) -> NDArray[np.float32]:
    """Read a depth map: a 16-bit PNG of `scale` steps a metre (default 1000), or a `.npy` file of metres, which has no scale.

    Returns (h, w), NaN where nothing was seen: 0, negative, not finite. Raises InvalidPart."""
    if data.startswith(npy.MAGIC):
        depth = _array(data, decoder.limits.points, 2, "(H, W)")
    else:
        depth = _png(data, decoder) / np.float32(scale or MILLIMETRES)
    with np.errstate(invalid="ignore"):
        depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(np.nan))
    return _within_reach(depth)


def read_points(data: bytes, decoder: ImageDecoder) -> PointMap:
    """Read a `.npy` file (h, w, 3), with NaN in all coordinates if one of them is not finite. Raises InvalidPart."""
    if not data.startswith(npy.MAGIC):
        raise InvalidPart("not a .npy file: save a numpy array of float32 (H, W, 3)")
    points = _array(data, decoder.limits.points, 3, "(H, W, 3)")
    if points.shape[2] != 3:
        raise InvalidPart(f"shape {points.shape}, but (H, W, 3) is needed")
    points = np.where(np.isfinite(points).all(axis=2, keepdims=True), points, np.float32(np.nan))
    return _within_reach(points)


def to_image_size(grid: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize (h, w, …) → (H, W, …) to the nearest of each pixel's centre. Raises InvalidPart for another aspect ratio."""
    if grid.shape[:2] == (height, width):
        return grid
    if not _same_aspect(grid.shape[0], grid.shape[1], height, width):
        raise InvalidPart(f"{grid.shape[1]} × {grid.shape[0]} pixels have another aspect than the image, which has {width} × {height}")
    return nearest(grid, height, width)


def nearest(grid: NDArray[T], height: int, width: int) -> NDArray[T]:
    """Resize (h, w, …) → (H, W, …) to the nearest of each pixel's centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.intp) for new, old in ((height, grid.shape[0]), (width, grid.shape[1]))
    )
    return np.ascontiguousarray(grid[rows][:, columns])


def _same_aspect(height: int, width: int, other_height: int, other_width: int) -> bool:
    """Return whether the aspect ratios agree within one pixel of the smaller image, or within `ASPECT`."""
    fits = abs(width * other_height / other_width - height) <= 1 or abs(other_width * height / width - other_height) <= 1
    return fits and abs(math.log(width * other_height / (height * other_width))) < 10 * ASPECT


def _array(data: bytes, max_points: int, dimensions: int, expected: str) -> NDArray[np.float32]:
    header = npy.read_header(data, expected="float32, in metres,")
    if len(header.shape) != dimensions or 0 in header.shape:
        raise InvalidPart(f"shape {header.shape}, but {expected} is needed")
    _check(header.shape[0], header.shape[1], max_points)
    return npy.read(data, header)


def _png(data: bytes, decoder: ImageDecoder) -> NDArray[np.float32]:
    """Read (h, w) of 16-bit values."""
    try:
        if sniff(data) != "PNG":
            raise InvalidPart("neither a 16-bit PNG nor a .npy file")
        opened = decoder.open(data)
    except (TooManyPixels, CorruptImage) as error:
        raise (ExcessivePart if isinstance(error, TooManyPixels) else InvalidPart)(str(error)) from error
    except ImageError as error:
        raise InvalidPart("neither a 16-bit PNG nor a .npy file") from error
    image = opened.stored
    if image.mode not in SIXTEEN_BITS:
        raise InvalidPart(
            f"a PNG of mode {image.mode}, 8 bits or several channels: send 16 bits of one channel, in millimetres or with depth_scale"
        )
    _check(image.height, image.width, decoder.limits.points)
    with decoder.budget.reserve(opened.memory()):
        try:
            return np.asarray(image).astype(np.float32)
        except Exception as error:
            raise InvalidPart(f"the PNG is truncated or corrupt ({error})") from error


def _check(height: int, width: int, max_points: int) -> None:
    if height * width > max_points:
        raise ExcessivePart(f"{width} × {height} points are above the limit of {max_points} (OPSIN_MAX_POINTS)")


def _within_reach(grid: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):
        farthest = np.nanmax(np.abs(grid), initial=0.0)
    if farthest > MAX_DEPTH_M:
        raise InvalidPart(f"a coordinate of {farthest:.3g} m: send metres, and NaN where nothing was seen")
    return grid
