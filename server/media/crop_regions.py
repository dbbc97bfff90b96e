"""The part of an image that a network of fixed size works on, and its scale. Sizes are height and width."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.media import patchmatch
from server.media import masks
from server.media.masks import PixelBox, PixelMask
from server.media.rgb import on_white

Mode = Literal["fit", "crop", "tile"]
Size = tuple[int, int]

CONTEXT = 3
"""Ratio of a crop's size to that of the hole's box: as much is known on each side of the hole as is to be filled."""
STRIP_PIXELS = 1024 * 1024
SCALING_BYTES = 17
"""Bytes for a pixel of a strip and of the cubic's margin, which at most doubles it: four copies, and a mask."""
CUBIC_SUPPORT = 2
"""Half width of a cubic, in pixels of the coarser grid."""
CUBIC_REACH = 3
"""Distance within which a cubic mixes pixels, in pixels of the coarser grid: its half width, and one for the fraction."""


@dataclass(frozen=True)
class Region:
    box: PixelBox
    """Box in the image."""
    scaled: Size
    """Size of the box as the network sees it."""
    windows: tuple[Size, ...] = ((0, 0),)
    """Top and left of each window of the network in the scaled box, in the order in which they are filled; empty without a hole."""


def choose_region(mode: Mode | None, mask: PixelMask, native: Size) -> Region:
    """Choose the region for a mode. None means `crop` for images above the native size, else `fit`."""
    height, width = mask.shape
    hole = masks.bounds(mask)
    if hole is None:
        return Region(PixelBox(0, 0, 1, 1), (1, 1), ())
    if mode is None:
        mode = "crop" if height > native[0] or width > native[1] else "fit"
    if mode == "tile":
        return _tile(mask, hole, native)
    box = PixelBox(0, 0, width, height) if mode == "fit" else _crop_box(hole, mask.shape, native)
    return Region(box, _fit(box, native))


def detail(mask: PixelMask, region: Region) -> Region:
    """Return the region at the image's own scale, from which patches are copied into the hole; reduced if it is large."""
    box = region.box
    hole = box.crop(mask)
    share = min(1.0, patchmatch.MAX_PIXELS / (box.height * box.width), patchmatch.MAX_HOLE_PIXELS / max(1, int(np.count_nonzero(hole))))
    while True:
        size = max(1, int(box.height * math.sqrt(share))), max(1, int(box.width * math.sqrt(share)))
        # a reduced pixel is missing if any of its own is: fine holes grow
        missing = 0 if share == 1 else int(np.count_nonzero(masks.resize(hole, *size)))
        if missing <= patchmatch.MAX_HOLE_PIXELS:
            return Region(box, size)
        share *= patchmatch.MAX_HOLE_PIXELS / missing


def canvas(image: Image.Image, mask: PixelMask, region: Region) -> tuple[NDArray[np.uint8], PixelMask]:
    """Return the region of an upright RGB or RGBA image as the network sees it, uint8 (h, w, 3), and its hole, (h, w).

    What lies under the mask has no influence: neighbours are resampled as if it were not there. Other transparency is composited on white.
    It works some rows at a time, since there are up to four copies of them.
    """
    box, (height, width) = region.box, region.scaled
    hole = mask[box.top : box.top + box.height, box.left : box.left + box.width]
    scale = box.height / height
    missing = masks.resize(hole, height, width)
    pixels = np.empty((height, width, 3), np.uint8)
    is_scaled = (box.height, box.width) != region.scaled
    near = masks.grow(missing, CUBIC_REACH * math.ceil(max(1.0, height / box.height, width / box.width))) if is_scaled else None
    rows = max(1, STRIP_PIXELS // round(box.width * max(1.0, scale)))
    for top in range(0, height, rows):
        strip = slice(top, min(top + rows, height))
        reach = math.ceil(CUBIC_SUPPORT * max(1.0, scale)) + 1 if near is not None else 0
        first, last = max(0, math.floor(top * scale) - reach), min(box.height, math.ceil(strip.stop * scale) + reach)
        part = image.crop((box.left, box.top + first, box.left + box.width, box.top + last))
        part = on_white(part) if part.mode == "RGBA" else part
        if near is None:
            pixels[strip] = np.asarray(part)
        else:
            source = (0, top * scale - first, box.width, strip.stop * scale - first)
            pixels[strip] = _resample(part, hole[first:last], (width, strip.stop - top), source, near[strip])
    pixels[missing] = 0
    return pixels, missing


def _resample(
    part: Image.Image, hole: PixelMask, size: tuple[int, int], source: tuple[float, float, float, float], near: PixelMask
) -> NDArray[np.uint8]:
    """Resize `source` of the part: by cubics, but near the hole by triangles, whose weights are never negative, weighted by what is known.

    size: width and height."""
    pixels = np.array(part.resize(size, Image.Resampling.BICUBIC, source))
    part.putalpha(Image.fromarray(np.where(hole, np.uint8(0), np.uint8(255))))
    weighted = np.asarray(part.resize(size, Image.Resampling.BILINEAR, source))  # Pillow weights colours by alpha
    pixels[near] = weighted[..., :3][near]
    return pixels


def _fit(box: PixelBox, native: Size) -> Size:
    """Return the largest size with the box's proportions that the network takes."""
    scale = min(native[0] / box.height, native[1] / box.width)
    height, width = (min(limit, max(1, round(side * scale))) for side, limit in zip((box.height, box.width), native, strict=True))
    return height, width


def _crop_box(hole: PixelBox, image: Size, native: Size) -> PixelBox:
    """Return a box with the network's proportions around the hole, at least of its size, moved and cut to lie in the image."""
    scale = max(1.0, CONTEXT * hole.height / native[0], CONTEXT * hole.width / native[1])
    height, width = (min(limit, math.ceil(side * scale)) for side, limit in zip(native, image, strict=True))
    top = _inside(hole.top + hole.height // 2 - height // 2, height, image[0])
    left = _inside(hole.left + hole.width // 2 - width // 2, width, image[1])
    return PixelBox(left, top, width, height)


def _tile(mask: PixelMask, hole: PixelBox, native: Size) -> Region:
    """Return overlapping windows of the network's size, at the image's own scale: at least half of each is known when it is filled.

    Windows that find nothing left to fill are left out."""
    height, width = (min(side, limit) for side, limit in zip(native, mask.shape, strict=True))
    tops = _starts(hole.top, hole.height, height, mask.shape[0])
    lefts = _starts(hole.left, hole.width, width, mask.shape[1])
    remaining = mask.copy()
    windows = []
    for top in tops:
        for left in lefts:
            window = remaining[top : top + height, left : left + width]
            if window.any():
                windows.append((top, left))
                window[:] = False
    box = PixelBox(lefts[0], tops[0], lefts[-1] + width - lefts[0], tops[-1] + height - tops[0])
    return Region(box, (box.height, box.width), tuple((top - box.top, left - box.left) for top, left in windows))


def _starts(first: int, length: int, window: int, limit: int) -> list[int]:
    """Return starts of windows along one axis: the first begins half a window before the hole, the last reaches its end."""
    half = max(1, window // 2)
    starts = [_inside(first - half, window, limit)]
    while starts[-1] + window < first + length:
        starts.append(_inside(starts[-1] + half, window, limit))
    return starts


def _inside(start: int, length: int, limit: int) -> int:
    return min(max(0, start), limit - length)
