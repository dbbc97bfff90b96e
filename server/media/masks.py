"""Which pixels of an image are to be filled: from a mask's picture, from transparency, or from words. All masks are bool (H, W)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mask = NDArray[np.bool_]

THRESHOLD = 128
"""Brightness, of 255, from which on a pixel is to be filled."""
OPAQUE = 255
STRIP_PIXELS = 256 * 1024
FORMS = "`box:X,Y,W,H` in pixels, `center`, `center:RATIO` or `random:RATIO`, the ratio above 0 and up to 1"
CENTRE = 0.25
"""AreaShare of the area that `center` means."""


@dataclass(frozen=True)
class Box:
    left: int
    top: int
    width: int
    height: int

    def mask(self, height: int, width: int) -> Mask:
        """The mask of an image of this size. Raises ValueError if the box is not inside."""
        if self.left + self.width > width or self.top + self.height > height:
            right, bottom = self.left + self.width, self.top + self.height
            raise ValueError(f"the box from {self.left},{self.top} to {right},{bottom} leaves the image of {width} × {height} pixels")
        mask = np.zeros((height, width), np.bool_)
        mask[self.top : self.top + self.height, self.left : self.left + self.width] = True
        return mask

    def of(self, mask: Mask) -> Mask:
        """The part of a mask in this box."""
        return mask[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class AreaShare:
    """A part of the area: a rectangle in the middle with the image's proportions, or cells of a grid, chosen by a seed."""

    kind: Literal["center", "random"]
    ratio: float

    def mask(self, height: int, width: int, cell: float, seed: int) -> Mask:
        """cell: side of the grid's squares in pixels; one at least, since smaller squares would lie between pixels."""
        if self.kind == "center":
            inner_height, inner_width = (max(1, round(side * math.sqrt(self.ratio))) for side in (height, width))
            return Box((width - inner_width) // 2, (height - inner_height) // 2, inner_width, inner_height).mask(height, width)
        rows, columns = ((np.arange(side) / max(1.0, cell)).astype(np.intp) for side in (height, width))
        count = (rows[-1] + 1) * (columns[-1] + 1)
        order = np.argsort(np.random.Philox(key=seed).random_raw(count), kind="stable")
        chosen = np.zeros(count, np.bool_)
        chosen[order[: max(1, round(self.ratio * count))]] = True
        grid = chosen.reshape(rows[-1] + 1, columns[-1] + 1)
        mask: Mask = grid[rows][:, columns]
        return mask


def parse(text: str) -> Box | AreaShare:
    """Raises ValueError."""
    kind, _, rest = text.partition(":")
    try:
        if not rest.isascii() or "_" in rest:  # Python would read these digits, no other option does
            raise ValueError
        if kind == "box":
            left, top, width, height = (int(number) for number in rest.split(","))
            if min(left, top) < 0 or min(width, height) < 1:
                raise ValueError
            return Box(left, top, width, height)
        if kind == "center" and not rest:
            return AreaShare("center", CENTRE)
        if kind in ("center", "random"):
            ratio = float(rest)
            if not 0 < ratio <= 1:  # false for NaN, too
                raise ValueError
            return AreaShare("center" if kind == "center" else "random", ratio)
    except ValueError:
        pass
    raise ValueError(f"{text[:100]!r}: use {FORMS}")


def of_image(picture: Image.Image) -> Mask:
    """An RGB or RGBA picture: its transparent pixels where it has any that are not opaque, else those with a bright channel."""
    bright, transparent, opaque = np.empty((picture.height, picture.width), np.bool_), of_transparency(picture), True
    for rows, pixels in _strips(picture):
        bright[rows] = _brightest(pixels) >= THRESHOLD
        opaque = opaque and (pixels.shape[2] < 4 or pixels[..., 3].min() == OPAQUE)
    return bright if opaque else transparent


def _brightest(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Channel of each pixel: `max` along the last axis takes ten times as long."""
    brightest: NDArray[np.uint8] = np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
    return brightest


def of_transparency(picture: Image.Image) -> Mask:
    """Pixels that are wholly transparent; none in an RGB picture."""
    transparent = np.zeros((picture.height, picture.width), np.bool_)
    if picture.mode == "RGBA":
        for rows, pixels in _strips(picture):
            transparent[rows] = pixels[..., 3] == 0
    return transparent


def _strips(picture: Image.Image) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Rows, and their pixels (h, w, C): all at once would take as much memory as the picture itself."""
    count = max(1, STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, count):
        bottom = min(top + count, picture.height)
        yield slice(top, bottom), np.asarray(picture.crop((0, top, picture.width, bottom)))


def grow(mask: Mask, pixels: int) -> Mask:
    """Widen by so many pixels in all eight directions."""
    box = bounds(mask)
    if pixels == 0 or box is None:
        return mask
    from scipy.ndimage import maximum_filter  # takes a moment, and classifying does without

    here = slice(max(0, box.top - pixels), box.top + box.height + pixels), slice(max(0, box.left - pixels), box.left + box.width + pixels)
    grown = np.zeros(mask.shape, np.bool_)  # `zeros_like` writes it
    maximum_filter(mask[here], 2 * pixels + 1, output=grown[here], mode="constant")
    return grown


def bounds(mask: Mask) -> Box | None:
    """The smallest box around all that is to be filled; None if that is nothing."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return Box(int(columns[0]), int(rows[0]), int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1)


def thickness(mask: Mask) -> int:
    """Twice the distance of the innermost pixel to the nearest one outside the mask, in steps to all eight sides; the image's border is no
    outside. Takes four bytes a pixel."""
    from scipy.ndimage import distance_transform_cdt  # takes a moment, and classifying does without

    if mask.all():
        return 2 * int(max(mask.shape))
    distances: NDArray[np.int32] = distance_transform_cdt(mask, "chessboard")
    return 2 * int(distances.max())


def resize(mask: Mask, height: int, width: int) -> Mask:
    """A pixel of the result is to be filled if any of those that it covers is: thin strokes stay."""
    return _cover(_cover(mask, height, axis=0), width, axis=1)


def _cover(mask: Mask, count: int, axis: int) -> Mask:
    """Along one axis: cell i covers from i · n / count to (i + 1) · n / count."""
    length = mask.shape[axis]
    if count == length:
        return mask
    first = np.arange(count) * length // count
    last = -(-(np.arange(count) + 1) * length // count) - 1
    whole: Mask = np.logical_or.reduceat(mask, first, axis=axis)  # up to the next one's first pixel
    result: Mask = whole | mask.take(last, axis=axis)
    return result


def opaque(pixels: NDArray[np.uint8]) -> Mask | None:
    """RGB or RGBA (H, W, C) → where it is opaque; None where it is everywhere."""
    if pixels.shape[2] < 4:
        return None
    shown: Mask = pixels[..., 3] >= THRESHOLD
    return None if shown.all() else shown


def object_of(picture: Image.Image) -> Mask:
    """The mask of an object, RGB or RGBA: where it is bright or, if it has transparency, opaque. Takes two bytes a pixel."""
    bright, shown = (np.ones((picture.height, picture.width), np.bool_) for _ in range(2))
    for rows, pixels in _strips(picture):
        bright[rows] = _brightest(pixels) >= THRESHOLD
        if pixels.shape[2] == 4:
            shown[rows] = pixels[..., 3] >= THRESHOLD
    return bright if shown.all() else shown
