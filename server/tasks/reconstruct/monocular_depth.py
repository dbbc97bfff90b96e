"""Input of a network that estimates depth, from a photograph of an object; and its prediction → depth of the object.

A prediction is right up to scale and shift, so the depth of the object, in the middle and from front to back, is an assumption: its
median is 1, and its extent is half the object's size, like the front of a ball.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.bundle import BundleSpec
from server.media.masks import PixelMask

CONTEXT = 0.1
"""Margin around the object on each side, relative to its longer side."""
REACH = 0.5
"""Depth from front to back of the seen side, in square roots of the area that the silhouette has at the median depth."""
MAX_REACH = 0.9
TAILS = (1.0, 99.0)
"""Percentiles to which predictions are clipped."""
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def estimates_depth(spec: BundleSpec) -> bool:
    """Return whether a bundle can be sent an image alone."""
    return "depth" in spec.members


def photograph(image: Image.Image, mask: PixelMask, spec: BundleSpec) -> NDArray[np.uint8]:
    """Return the square around the masked object, uint8 (S, S, 3): black beyond the image or, if the bundle wants it, the object's mean
    colour everywhere outside the object."""
    side, (box, place) = int(spec.config["depth_size"]), _object_square(mask)
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


def to_depth(prediction: NDArray[np.float32], mask: PixelMask, spec: BundleSpec, focal: float) -> NDArray[np.float32]:
    """Convert a prediction for `photograph`, (S, S), to depth (H, W) of the masked object, in units of its median; NaN elsewhere.

    focal: of the camera, in pixels of the mask.
    """
    (left, top, right, bottom), place = _object_square(mask)
    x0, y0, x1, y1 = (edge * len(prediction) for edge in place)
    part = Image.fromarray(prediction).resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
    spread = np.zeros(mask.shape, np.float64)
    spread[top:bottom, left:right] = np.asarray(part)
    values = np.clip(spread, *np.percentile(spread[mask], TAILS))
    reach = min(MAX_REACH, REACH * np.sqrt(np.count_nonzero(mask)) / focal)
    depth = (
        _depth_from_disparity(values, mask, reach) if spec.config["depth_output"] == "disparity" else _depth_from_depth(values, mask, reach)
    )
    return np.where(mask, depth, np.nan).astype(np.float32)


def _depth_from_depth(prediction: NDArray[np.float64], inside: PixelMask, reach: float) -> NDArray[np.float64]:
    """Return 1 + a (t - median), with a so that the depth has this reach, and the nearest is at most half as near as the median."""
    middle, (nearest, farthest) = np.median(prediction[inside]), (prediction[inside].min(), prediction[inside].max())
    if nearest == farthest:
        return np.ones_like(prediction)
    a = min(reach / (farthest - nearest), 0.5 / max(middle - nearest, 1e-12))
    return np.asarray(1 + a * (prediction - middle))


def _depth_from_disparity(prediction: NDArray[np.float64], inside: PixelMask, reach: float) -> NDArray[np.float64]:
    """Return 1 / (1 + a (t - median)), with a so that the depth has this reach.

    far = 1 / (1 - a u), near = 1 / (1 + a v), and far - near = reach make reach u v a² + (u + v - reach (v - u)) a - reach = 0, of which
    one root lies between 0 and 1 / u."""
    middle = np.median(prediction[inside])
    u, v = middle - prediction[inside].min(), prediction[inside].max() - middle
    if u + v == 0:
        return np.ones_like(prediction)
    second, first = reach * u * v, u + v - reach * (v - u)
    a = 2 * reach / (first + np.sqrt(first**2 + 4 * second * reach))
    return np.asarray(1 / (1 + a * (prediction - middle)))


def _object_square(mask: PixelMask) -> tuple[tuple[int, int, int, int], tuple[float, float, float, float]]:
    """Return the part of the image inside the square around the object, and its position in that square, whose side is 1.

    Both are left, top, right and bottom."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    size = int(max(np.ptp(rows), np.ptp(columns))) + 1
    half = (size + 1) // 2 + round(CONTEXT * size)
    top, left = (int(places[0] + places[-1] + 1) // 2 - half for places in (rows, columns))
    height, width = mask.shape
    box = max(0, left), max(0, top), min(width, left + 2 * half), min(height, top + 2 * half)
    x0, y0, x1, y1 = ((edge - start) / (2 * half) for edge, start in zip(box, (left, top) * 2, strict=True))
    return box, (x0, y0, x1, y1)
