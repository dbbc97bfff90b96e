"""Image and seen points as MCC's encoders take them (arXiv 2301.08247): equal to `models.systems.mcc.scene_inputs`, without torch.

Maps are resized bilinearly without antialiasing, which propagates NaN to every pixel that has an unseen neighbour, as in training.

The front of a reconstruction, its photograph, depth and silhouette, is small enough to be kept with its scene. FRONT names its arrays:
front, a JPEG, uint8 (bytes,); front_depth, float16 (h, w), normalised units behind the plane of the object's middle, NaN where nothing was
seen; front_mask, its silhouette, packed bits; front_camera, float32 (8,): fx, fy, cx, cy and the edges of what the camera saw, in pixels of
the front, NaN where no camera fits the points.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.bundle_schema import QuerySpace
from models.systems.mcc.surfaces import VisibleSurface
from server.media import depth
from server.media.depth import PinholeCamera, PointMap
from server.media.limits import InvalidPart
from server.media.masks import PixelMask

FRONT = ("front", "front_depth", "front_mask", "front_camera")
LONG_SIDE = 512
QUALITY = 90
SLIM = 4
"""Ratio of width to height above which columns are chosen before rows."""


@dataclass(frozen=True)
class NetworkView:
    pixels: NDArray[np.uint8]
    """(S, S, 3), of the network's size."""
    seen: PointMap
    """(n, n, 3) in normalised units, NaN where nothing was seen."""
    scale: float
    """Metres per unit."""
    centre: NDArray[np.float32]
    """(3,), in units: subtracted from the points after scaling."""


class ImageTooNarrow(InvalidPart):
    """An image that is too narrow for the network, however much of it was seen."""


def to_metres(points: NDArray[np.float32], scale: float, centre: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert normalised (P, 3) to metres in the camera's frame."""
    return ((points + centre) * np.float32(scale)).astype(np.float32)


def build_view(
    image: NDArray[np.uint8], points: PointMap, mask: PixelMask, space: QuerySpace, *, image_size: int, seen_size: int
) -> NetworkView:
    """Build the network's view of image (H, W, 3), points (H, W, 3), mask (H, W). Raises InvalidPart if too few points are seen.

    A cube is cropped to the mask with a margin and padded to a square, its points centred. A half ball is the square in the middle, with
    points around the camera."""
    box = bounding_slices(mask, space.margin) if space.region == "cube" else centre_square(*mask.shape)
    height, width = mask[box].shape
    min_side = int((max(height, width) / seen_size - 1) / 2) + 2  # the first of the resized pixels has two neighbours
    if min(mask.shape) < min_side:
        raise ImageTooNarrow(
            f"too narrow for the {seen_size} × {seen_size} points that the network sees: the crop has {width} × {height} pixels, and its "
            f"shorter side needs at least {min_side}"
        )
    objects = np.where(mask[..., None], points, np.float32(np.nan))
    if space.region == "cube":
        scale, centre = _normalisation(objects)
        normalised = np.asarray(objects[box] / np.float32(scale) - centre, np.float32)
        seen = resize(normalised, seen_size, np.nan)
        cropped = image[box]
    else:
        seen = resize(objects[box], seen_size)
        scale, centre = _normalisation(seen)[0], np.zeros(3, np.float32)
        seen, cropped = seen / np.float32(scale), image[box]
    if not np.isfinite(seen).all(axis=2).any():
        raise InvalidPart(f"no point is left when the map is resized to {seen_size} × {seen_size}: too few neighbouring pixels were seen")
    pixels = resize(cropped, space.source_size or image_size)
    return NetworkView(np.rint(resize(pixels, image_size)).astype(np.uint8), seen, scale, centre)


def resize(grid: NDArray[np.float32] | NDArray[np.uint8], size: int, fill: float = 0.0) -> NDArray[np.float32]:
    """Resize (H, W, C) → (size, size, C), bilinearly between pixels' centres, as if padded to a square by `fill`, below or on the right.

    The square of a long strip is never made. An image that has the size already keeps its edges."""
    if grid.shape[:2] == (size, size):
        return grid.astype(np.float32)
    length = max(grid.shape[:2])
    with np.errstate(invalid="ignore"):
        if grid.shape[1] > SLIM * grid.shape[0]:
            return _along(_along(grid, size, 1, length, fill), size, 0, length, fill)
        return _along(_along(grid, size, 0, length, fill), size, 1, length, fill)


def _along(grid: NDArray[np.float32] | NDArray[np.uint8], size: int, axis: int, length: int, fill: float) -> NDArray[np.float32]:
    """Resize one axis. length: of the axis after padding."""
    ratio = np.float32(length / size)
    at = np.maximum((np.arange(size, dtype=np.float32) + np.float32(0.5)) * ratio - np.float32(0.5), np.float32(0))
    low = np.minimum(at.astype(np.intp), length - 1)
    high = np.minimum(low + 1, length - 1)
    share = (at - low).astype(np.float32).reshape((-1,) + (1,) * (grid.ndim - 1 - axis))
    below, above = (_take_padded(grid, index, axis, fill) for index in (low, high))  # only what is needed of a large image
    mixed: NDArray[np.float32] = below * (np.float32(1) - share) + above * share
    return mixed


def _take_padded(grid: NDArray[np.float32] | NDArray[np.uint8], index: NDArray[np.intp], axis: int, fill: float) -> NDArray[np.float32]:
    """Return values at these indices of an axis; `fill` beyond its end."""
    length = grid.shape[axis]
    found: NDArray[np.float32] = grid.take(np.minimum(index, length - 1), axis).astype(np.float32)
    if index[-1] >= length:
        found[(slice(None),) * axis + (index >= length,)] = fill
    return found


def _normalisation(points: PointMap) -> tuple[float, NDArray[np.float32]]:
    """Return scale, the unbiased standard deviation of the points averaged over the axes, and centre, the mean of the scaled points.

    Raises InvalidPart."""
    found = points[np.isfinite(points).all(axis=2)].astype(np.float64)  # (P, 3)
    if len(found) < 2:
        raise InvalidPart(f"{len(found)} points are seen; two are needed at least")
    scale = float(found.std(axis=0, ddof=1).mean())
    if scale <= 0:
        raise InvalidPart(f"all {len(found)} points that are seen are one and the same")
    return scale, (found.mean(axis=0) / scale).astype(np.float32)


def bounding_slices(mask: PixelMask, margin: int) -> tuple[slice, slice]:
    """Return rows and columns of the mask's bounding box, with a margin."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(max(rows[0] - margin, 0), rows[-1] + margin + 1), slice(max(columns[0] - margin, 0), columns[-1] + margin + 1)


def centre_square(height: int, width: int) -> tuple[slice, slice]:
    """Return rows and columns of the largest square in the middle."""
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)


def build_front(
    pixels: NDArray[np.uint8],
    points: PointMap,
    mask: PixelMask,
    camera: PinholeCamera | None,
    made: NetworkView,
    space: QuerySpace,
    *,
    drawn: bool,
) -> dict[str, NDArray[Any]]:
    """Build a scene's front: pixels (H, W, 3), points (H, W, 3) in metres, mask (H, W). drawn: holes are holes, not unseen pixels."""
    from scipy.ndimage import binary_fill_holes  # takes a moment, and few requests need it

    rows, columns = box = bounding_slices(mask, 0) if space.region == "cube" else centre_square(*mask.shape)
    height, width = mask[box].shape
    share = min(1.0, LONG_SIDE / max(height, width))
    small = max(1, round(height * share)), max(1, round(width * share))
    photograph = Image.fromarray(pixels[box]).resize(small[::-1], Image.Resampling.BOX if share < 1 else Image.Resampling.NEAREST)
    file = io.BytesIO()
    photograph.save(file, "JPEG", quality=QUALITY, subsampling=0)
    distance = depth.nearest(np.where(mask, points[..., 2], np.nan)[box], *small)
    with np.errstate(over="ignore"):
        units = (distance / np.float32(made.scale) - made.centre[2]).astype(np.float16)
    silhouette = depth.nearest(np.ascontiguousarray(mask[box]), *small)
    if not drawn:  # a sensor leaves holes where it sees nothing
        silhouette = np.ones_like(silhouette) if space.region == "half-ball" else binary_fill_holes(silhouette)
    across, down = small[1] / width, small[0] / height
    seen = np.full(8, np.nan, np.float32)
    if camera is not None:
        moved = PinholeCamera(camera.fx, camera.fy, camera.cx - columns.start, camera.cy - rows.start).rescale(across, down)
        left, top = -columns.start * across, -rows.start * down
        edges = left, top, left + mask.shape[1] * across, top + mask.shape[0] * down
        if space.region == "half-ball":
            edges = 0, 0, small[1], small[0]
        seen[:] = moved.fx, moved.fy, moved.cx, moved.cy, *edges
    return {
        "front": np.frombuffer(file.getvalue(), np.uint8),
        "front_depth": np.where(np.isfinite(units), units, np.float16(np.nan)),
        "front_mask": np.packbits(silhouette),
        "front_camera": seen,
    }


def front_from_outputs(outputs: Mapping[str, NDArray[Any]]) -> VisibleSurface | None:
    """Read the front of a stored scene. Return None if it was not kept, or if no camera fits its points."""
    if any(name not in outputs for name in FRONT) or not np.isfinite(outputs["front_camera"]).all():
        return None
    centre = outputs["centre"].astype(np.float32)
    distance = outputs["front_depth"].astype(np.float32) + centre[2]
    mask = np.unpackbits(outputs["front_mask"], count=distance.size).astype(np.bool_).reshape(distance.shape)
    camera = outputs["front_camera"]
    return VisibleSurface(np.where(distance > 0, distance, np.float32(np.nan)), mask, camera[:4], camera[4:], centre)


def front_colours(outputs: Mapping[str, NDArray[Any]], seen: VisibleSurface) -> NDArray[np.uint8]:
    """Return the colours (P, 3) of `VisibleSurface.points`."""
    with Image.open(io.BytesIO(outputs["front"].tobytes())) as photograph:
        return np.asarray(photograph.convert("RGB"))[seen.seen]
