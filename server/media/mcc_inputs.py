"""Image and seen points as MCC's encoders take them (arXiv 2301.08247): the same numbers as `models.systems.mcc.scene_inputs` gives,
without torch.

Maps are resized bilinearly without antialiasing, which carries NaN into every pixel that has an unseen neighbour, as in training.

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
from models.systems.mcc.visible_surface import VisibleSurface
from server.media import depth
from server.media.depth import Camera, Points
from server.media.limits import InvalidPart

Mask = NDArray[np.bool_]
FRONT = ("front", "front_depth", "front_mask", "front_camera")
LONG_SIDE = 512
QUALITY = 90
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


class TooNarrow(InvalidPart):
    """The image is, however much of it was seen."""


def to_metres(points: NDArray[np.float32], scale: float, centre: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalised (P, 3) → in the camera's frame."""
    return ((points + centre) * np.float32(scale)).astype(np.float32)


def view(image: NDArray[np.uint8], points: Points, mask: Mask, space: QuerySpace, *, image_size: int, seen_size: int) -> View:
    """image (H, W, 3), points (H, W, 3), mask (H, W) of what counts. Raises InvalidPart where too few points are seen.

    Of a cube: cropped to the mask with a margin and padded to a square, points centred. Of a half ball: the square in the middle, points
    around the camera.
    """
    box = around(mask, space.margin) if space.region == "cube" else middle(*mask.shape)
    height, width = mask[box].shape
    least = int((max(height, width) / seen_size - 1) / 2) + 2  # the first of the pixels that are resized to has two neighbours
    if min(mask.shape) < least:
        raise TooNarrow(
            f"too narrow for the {seen_size} × {seen_size} points that the network sees: of the {width} × {height} pixels that it is "
            f"shown, the shorter side needs {least} at least"
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


def front(
    pixels: NDArray[np.uint8], points: Points, mask: Mask, camera: Camera | None, made: View, space: QuerySpace, *, drawn: bool
) -> dict[str, NDArray[Any]]:
    """pixels (H, W, 3), points (H, W, 3) in metres, mask (H, W) of what counts; drawn: somebody drew it, so that its holes are holes, not
    unseen pixels."""
    from scipy.ndimage import binary_fill_holes  # takes a moment, and few ask for it

    rows, columns = box = around(mask, 0) if space.region == "cube" else middle(*mask.shape)
    height, width = mask[box].shape
    share = min(1.0, LONG_SIDE / max(height, width))
    small = max(1, round(height * share)), max(1, round(width * share))
    photograph = Image.fromarray(pixels[box]).resize(small[::-1], Image.Resampling.BOX if share < 1 else Image.Resampling.NEAREST)
    file = io.BytesIO()
    photograph.save(file, "JPEG", quality=QUALITY, subsampling=0)
    away = depth.nearest(np.where(mask, points[..., 2], np.nan)[box], *small)
    with np.errstate(over="ignore"):
        units = (away / np.float32(made.scale) - made.centre[2]).astype(np.float16)
    shown = depth.nearest(np.ascontiguousarray(mask[box]), *small)
    if not drawn:  # a sensor leaves holes where it sees nothing
        shown = np.ones_like(shown) if space.region == "half-ball" else binary_fill_holes(shown)
    across, down = small[1] / width, small[0] / height
    seen = np.full(8, np.nan, np.float32)
    if camera is not None:
        moved = Camera(camera.fx, camera.fy, camera.cx - columns.start, camera.cy - rows.start).scaled(across, down)
        left, top = -columns.start * across, -rows.start * down
        edges = left, top, left + mask.shape[1] * across, top + mask.shape[0] * down
        if space.region == "half-ball":
            edges = 0, 0, small[1], small[0]
        seen[:] = moved.fx, moved.fy, moved.cx, moved.cy, *edges
    return {
        "front": np.frombuffer(file.getvalue(), np.uint8),
        "front_depth": np.where(np.isfinite(units), units, np.float16(np.nan)),
        "front_mask": np.packbits(shown),
        "front_camera": seen,
    }


def front_of(outputs: Mapping[str, NDArray[Any]]) -> VisibleSurface | None:
    """None: it was not kept, or no camera fits its points."""
    if any(name not in outputs for name in FRONT) or not np.isfinite(outputs["front_camera"]).all():
        return None
    centre = outputs["centre"].astype(np.float32)
    away = outputs["front_depth"].astype(np.float32) + centre[2]
    mask = np.unpackbits(outputs["front_mask"], count=away.size).astype(np.bool_).reshape(away.shape)
    camera = outputs["front_camera"]
    return VisibleSurface(np.where(away > 0, away, np.float32(np.nan)), mask, camera[:4], camera[4:], centre)


def front_colours(outputs: Mapping[str, NDArray[Any]], seen: VisibleSurface) -> NDArray[np.uint8]:
    """(P, 3), of `VisibleSurface.points`."""
    with Image.open(io.BytesIO(outputs["front"].tobytes())) as photograph:
        return np.asarray(photograph.convert("RGB"))[seen.seen]
