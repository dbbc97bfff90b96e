"""The front of a reconstruction: photograph, depth and silhouette of the object, small enough to be kept with its scene.

Arrays: front, a JPEG, uint8 (bytes,); front_depth, float16 (h, w), normalised units behind the plane of the object's middle, NaN where
nothing was seen; front_mask, its silhouette, packed bits; front_camera, float32 (8,): fx, fy, cx, cy and the edges of what the camera saw,
in pixels of the front, NaN where no camera fits the points.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.mcc.front import Front
from models.spec import Space
from server.media import depth, views
from server.media.depth import Camera, Points

NAMES = ("front", "front_depth", "front_mask", "front_camera")
LONG_SIDE = 512
QUALITY = 90


def kept(
    pixels: NDArray[np.uint8], points: Points, mask: views.Mask, camera: Camera | None, view: views.View, space: Space, *, drawn: bool
) -> dict[str, NDArray[Any]]:
    """pixels (H, W, 3), points (H, W, 3) in metres, mask (H, W) of what counts; drawn: somebody drew it, so that its holes are holes, not
    unseen pixels."""
    rows, columns = box = views.around(mask, 0) if space.region == "cube" else views.middle(*mask.shape)
    height, width = mask[box].shape
    share = min(1.0, LONG_SIDE / max(height, width))
    small = max(1, round(height * share)), max(1, round(width * share))
    photograph = Image.fromarray(pixels[box]).resize(small[::-1], Image.Resampling.BOX if share < 1 else Image.Resampling.NEAREST)
    file = io.BytesIO()
    photograph.save(file, "JPEG", quality=QUALITY, subsampling=0)
    away = depth.nearest(np.where(mask, points[..., 2], np.nan)[box], *small)
    with np.errstate(over="ignore"):
        units = (away / np.float32(view.scale) - view.centre[2]).astype(np.float16)
    shown = depth.nearest(np.ascontiguousarray(mask[box]), *small)
    if not drawn:
        shown = np.ones_like(shown) if space.region == "half-ball" else _without_holes(shown)
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


def of(outputs: Mapping[str, NDArray[Any]]) -> Front | None:
    """None: it was not kept, or no camera fits its points."""
    if any(name not in outputs for name in NAMES) or not np.isfinite(outputs["front_camera"]).all():
        return None
    centre = outputs["centre"].astype(np.float32)
    away = outputs["front_depth"].astype(np.float32) + centre[2]
    mask = np.unpackbits(outputs["front_mask"], count=away.size).astype(np.bool_).reshape(away.shape)
    camera = outputs["front_camera"]
    return Front(np.where(away > 0, away, np.float32(np.nan)), mask, camera[:4], camera[4:], centre)


def colours(outputs: Mapping[str, NDArray[Any]], front: Front) -> NDArray[np.uint8]:
    """(P, 3), of `front.points`."""
    with Image.open(io.BytesIO(outputs["front"].tobytes())) as photograph:
        return np.asarray(photograph.convert("RGB"))[front.seen]


def _without_holes(mask: views.Mask) -> views.Mask:
    """Fill the holes of a mask: a sensor leaves holes where it sees nothing."""
    from scipy.ndimage import binary_fill_holes

    filled: views.Mask = binary_fill_holes(mask)
    return filled
