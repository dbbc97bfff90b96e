"""A photograph of an object without depth → what a network that tells depth gets of it, and what it told → depth of the object.

What is told is right up to scale and shift, so that the depth of the object, in the middle and from front to back, is an assumption: its
median is 1, and it reaches half as far as the object is large, as the front of a ball does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.bundle import BundleSpec
from server.media.masks import PixelMask

CONTEXT = 0.1
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


def photograph(image: Image.Image, mask: PixelMask, spec: BundleSpec) -> NDArray[np.uint8]:
    """The square around what the mask (H, W) shows, uint8 (S, S, 3): beyond the image black, or, where the bundle wants it, in the
    object's mean colour wherever the object is not."""
    side, (box, place) = int(spec.config["depth_size"]), _shown(mask)
    left, top, right, bottom = (round(edge * side) for edge in place)
    size, corner = (max(1, right - left), max(1, bottom - top)), (min(left, side - 1), min(top, side - 1))
    way = FILTERS[spec.config["depth_interpolation"]]
    square = Image.new("RGB", (side, side))
    square.paste(image.convert("RGB").resize(size, way, box=box), corner)
    if spec.config.get("depth_background") != "mean":
        return np.asarray(square)
    inside = Image.new("L", (side, side))
    inside.paste(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, way, box=box), corner)
    colours, share = np.asarray(square, np.float32), np.asarray(inside, np.float32)[..., None] / 255
    mean = (colours * share).sum(axis=(0, 1)) / max(float(share.sum()), 1e-6)
    filled: NDArray[np.uint8] = np.rint(mean + share * (colours - mean)).astype(np.uint8)
    return filled


def to_depth(told: NDArray[np.float32], mask: PixelMask, spec: BundleSpec, focal: float) -> NDArray[np.float32]:
    """Turn what was told of `photograph`, (S, S), into depth (H, W) of what the mask shows, in units of its median; NaN elsewhere.

    focal: of the camera, in pixels of the mask.
    """
    (left, top, right, bottom), place = _shown(mask)
    x0, y0, x1, y1 = (edge * len(told) for edge in place)
    part = Image.fromarray(told).resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
    spread = np.zeros(mask.shape, np.float64)
    spread[top:bottom, left:right] = np.asarray(part)
    values = np.clip(spread, *np.percentile(spread[mask], TAILS))
    reach = min(MOST_REACH, REACH * np.sqrt(np.count_nonzero(mask)) / focal)
    depth = _of_disparity(values, mask, reach) if spec.config["depth_output"] == "disparity" else _of_depth(values, mask, reach)
    return np.where(mask, depth, np.nan).astype(np.float32)


def _of_depth(told: NDArray[np.float64], inside: PixelMask, reach: float) -> NDArray[np.float64]:
    """1 + a (t - median), with a so that it reaches as far as it should, and half as near as the median at most."""
    middle, (nearest, farthest) = np.median(told[inside]), (told[inside].min(), told[inside].max())
    if nearest == farthest:
        return np.ones_like(told)
    a = min(reach / (farthest - nearest), 0.5 / max(middle - nearest, 1e-12))
    return np.asarray(1 + a * (told - middle))


def _of_disparity(told: NDArray[np.float64], inside: PixelMask, reach: float) -> NDArray[np.float64]:
    """1 / (1 + a (t - median)), with a so that it reaches as far as it should: far = 1 / (1 - a u), near = 1 / (1 + a v), and
    far - near = reach makes reach u v a² + (u + v - reach (v - u)) a - reach = 0, of which one root lies between 0 and 1 / u."""
    middle = np.median(told[inside])
    u, v = middle - told[inside].min(), told[inside].max() - middle
    if u + v == 0:
        return np.ones_like(told)
    second, first = reach * u * v, u + v - reach * (v - u)
    a = 2 * reach / (first + np.sqrt(first**2 + 4 * second * reach))
    return np.asarray(1 / (1 + a * (told - middle)))


def _shown(mask: PixelMask) -> tuple[tuple[int, int, int, int], tuple[float, float, float, float]]:
    """Left, top, right and bottom of the part of the image that lies in the square around the object, and where that part lies in the
    square, whose side is 1."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    size = int(max(np.ptp(rows), np.ptp(columns))) + 1
    half = (size + 1) // 2 + round(CONTEXT * size)
    top, left = (int(places[0] + places[-1] + 1) // 2 - half for places in (rows, columns))
    height, width = mask.shape
    box = max(0, left), max(0, top), min(width, left + 2 * half), min(height, top + 2 * half)
    x0, y0, x1, y1 = ((edge - start) / (2 * half) for edge, start in zip(box, (left, top) * 2, strict=True))
    return box, (x0, y0, x1, y1)
