"""A photograph of an object without depth → what a network that tells depth gets of it, and what it told → depth of the object.

What is told is right up to scale and shift, so that the depth of the object, in the middle and from front to back, is an assumption: its
median is 1, and it reaches half as far as the object is large, as the front of a ball does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.bundle import BundleSpec
from server.media.views import Mask

CONTEXT = 0.25
"""Share of the longer side of the object that is shown of its surroundings, on each side."""
REACH = 0.5
"""Depth from front to back of the seen side, in square roots of the area that the silhouette has at the median depth."""
MOST_REACH = 0.9
TAILS = (1.0, 99.0)
"""Percentiles of what is told beyond which it counts as they do."""
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def tells_depth(spec: BundleSpec) -> bool:
    """Whether a bundle can be sent an image alone."""
    return "depth" in spec.members


def photograph(image: Image.Image, mask: Mask, spec: BundleSpec) -> NDArray[np.uint8]:
    """The surroundings of what the mask (H, W) shows, squeezed: uint8 (S, S, 3)."""
    side, filter_ = int(spec.config["depth_size"]), FILTERS[spec.config["depth_interpolation"]]
    return np.asarray(image.convert("RGB").resize((side, side), filter_, box=_box(mask)), np.uint8)


def to_depth(told: NDArray[np.float32], mask: Mask, spec: BundleSpec, focal: float) -> NDArray[np.float32]:
    """Turn what was told of `photograph`, (S, S), into depth (H, W) of what the mask shows, in units of its median; NaN elsewhere.

    focal: of the camera, in pixels of the mask.
    """
    left, top, right, bottom = _box(mask)
    inside = mask[top:bottom, left:right]
    spread = np.asarray(Image.fromarray(told).resize((right - left, bottom - top), Image.Resampling.BILINEAR), np.float64)
    values = np.clip(spread, *np.percentile(spread[inside], TAILS))
    reach = min(MOST_REACH, REACH * np.sqrt(np.count_nonzero(mask)) / focal)
    depth = _of_disparity(values, inside, reach) if spec.config["depth_output"] == "disparity" else _of_depth(values, inside, reach)
    found = np.full(mask.shape, np.nan, np.float32)
    found[top:bottom, left:right][inside] = depth[inside]
    return found


def _of_depth(told: NDArray[np.float64], inside: Mask, reach: float) -> NDArray[np.float64]:
    """1 + a (t - median), with a so that it reaches as far as it should, and half as near as the median at most."""
    middle, (nearest, farthest) = np.median(told[inside]), (told[inside].min(), told[inside].max())
    if nearest == farthest:
        return np.ones_like(told)
    a = min(reach / (farthest - nearest), 0.5 / max(middle - nearest, 1e-12))
    return np.asarray(1 + a * (told - middle))


def _of_disparity(told: NDArray[np.float64], inside: Mask, reach: float) -> NDArray[np.float64]:
    """1 / (1 + a (t - median)), with a so that it reaches as far as it should: far = 1 / (1 - a u), near = 1 / (1 + a v), and
    far - near = reach makes reach u v a² + (u + v - reach (v - u)) a - reach = 0, of which one root lies between 0 and 1 / u."""
    middle = np.median(told[inside])
    u, v = middle - told[inside].min(), told[inside].max() - middle
    if u + v == 0:
        return np.ones_like(told)
    second, first = reach * u * v, u + v - reach * (v - u)
    a = 2 * reach / (first + np.sqrt(first**2 + 4 * second * reach))
    return np.asarray(1 / (1 + a * (told - middle)))


def _box(mask: Mask) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is shown of the image."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    around = round(CONTEXT * max(np.ptp(rows), np.ptp(columns)))
    height, width = mask.shape
    left, right = max(0, int(columns[0]) - around), min(width, int(columns[-1]) + 1 + around)
    top, bottom = max(0, int(rows[0]) - around), min(height, int(rows[-1]) + 1 + around)
    return left, top, right, bottom
