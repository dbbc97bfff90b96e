"""Masks of pixels to be filled: from an image of the mask, from transparency, or from a description. All masks are bool (H, W)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PixelMask = NDArray[np.bool_]

THRESHOLD = 128
"""Minimum brightness, of 255, of a pixel that is to be filled."""
OPAQUE = 255
STRIP_PIXELS = 256 * 1024
FORMS = "`box:X,Y,W,H` in pixels, `center`, `center:RATIO` or `random:RATIO`, the ratio above 0 and up to 1"
CENTRE = 0.25
"""Ratio of `center` without a number."""


@dataclass(frozen=True)
class PixelBox:
    left: int
    top: int
    width: int
    height: int

    def mask(self, height: int, width: int) -> PixelMask:
        """Return the mask of an image of this size. Raises ValueError if the box is not inside."""
        if self.left + self.width > width or self.top + self.height > height:
            right, bottom = self.left + self.width, self.top + self.height
            raise ValueError(f"the box from {self.left},{self.top} to {right},{bottom} leaves the image of {width} × {height} pixels")
        mask = np.zeros((height, width), np.bool_)
        mask[self.top : self.top + self.height, self.left : self.left + self.width] = True
        return mask

    def crop(self, mask: PixelMask) -> PixelMask:
        """Return the part of a mask in this box."""
        return mask[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class AreaShare:
    """A part of the area: a rectangle in the middle with the image's proportions, or cells of a grid, chosen by a seed."""

    kind: Literal["center", "random"]
    ratio: float

    def mask(self, height: int, width: int, cell: float, seed: int) -> PixelMask:
        """Return the mask of an image of this size. cell: side of the grid's squares in pixels, at least 1."""
        if self.kind == "center":
            inner_height, inner_width = (max(1, round(side * math.sqrt(self.ratio))) for side in (height, width))
            return PixelBox((width - inner_width) // 2, (height - inner_height) // 2, inner_width, inner_height).mask(height, width)
        rows, columns = ((np.arange(side) / max(1.0, cell)).astype(np.intp) for side in (height, width))
        count = (rows[-1] + 1) * (columns[-1] + 1)
        order = np.argsort(np.random.Philox(key=seed).random_raw(count), kind="stable")
        chosen = np.zeros(count, np.bool_)
        chosen[order[: max(1, round(self.ratio * count))]] = True
        grid = chosen.reshape(rows[-1] + 1, columns[-1] + 1)
        mask: PixelMask = grid[rows][:, columns]
        return mask


def parse(text: str) -> PixelBox | AreaShare:
    """Parse the description of a mask. Raises ValueError."""
    kind, _, rest = text.partition(":")
    try:
        if not rest.isascii() or "_" in rest:  # int() and float() would accept these digits
            raise ValueError
        if kind == "box":
            left, top, width, height = (int(number) for number in rest.split(","))
            if min(left, top) < 0 or min(width, height) < 1:
                raise ValueError
            return PixelBox(left, top, width, height)
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


def mask_from_image(image: Image.Image) -> PixelMask:
    """Convert an RGB or RGBA image: its transparent pixels if it has any that are not opaque, else those with a bright channel."""
    bright, transparent, opaque = np.empty((image.height, image.width), np.bool_), mask_from_alpha(image), True
    for rows, pixels in _strips(image):
        bright[rows] = _brightest(pixels) >= THRESHOLD
        opaque = opaque and (pixels.shape[2] < 4 or pixels[..., 3].min() == OPAQUE)
    return bright if opaque else transparent


def _brightest(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the brightest channel of each pixel: `max` along the last axis takes ten times as long."""
    brightest: NDArray[np.uint8] = np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
    return brightest


def mask_from_alpha(image: Image.Image) -> PixelMask:
    """Return the pixels that are wholly transparent; none in an RGB image."""
    transparent = np.zeros((image.height, image.width), np.bool_)
    if image.mode == "RGBA":
        for rows, pixels in _strips(image):
            transparent[rows] = pixels[..., 3] == 0
    return transparent


def _strips(image: Image.Image) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Yield rows and their pixels (h, w, C): all at once would take as much memory as the image itself."""
    count = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, count):
        bottom = min(top + count, image.height)
        yield slice(top, bottom), np.asarray(image.crop((0, top, image.width, bottom)))


def grow(mask: PixelMask, pixels: int) -> PixelMask:
    """Widen the mask by this many pixels in all eight directions."""
    box = bounds(mask)
    if pixels == 0 or box is None:
        return mask
    from scipy.ndimage import maximum_filter  # takes a moment, and classifying does without

    area = slice(max(0, box.top - pixels), box.top + box.height + pixels), slice(max(0, box.left - pixels), box.left + box.width + pixels)
    grown = np.zeros(mask.shape, np.bool_)  # `zeros_like` writes it
    maximum_filter(mask[area], 2 * pixels + 1, output=grown[area], mode="constant")
    return grown


def bounds(mask: PixelMask) -> PixelBox | None:
    """Return the smallest box around the mask's pixels. None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return PixelBox(int(columns[0]), int(rows[0]), int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1)


def thickness(mask: PixelMask) -> int:
    """Return twice the distance of the innermost pixel to the nearest one outside the mask, in steps to all eight sides.

    The image's border does not count as outside. Takes four bytes a pixel."""
    from scipy.ndimage import distance_transform_cdt  # takes a moment, and classifying does without

    if mask.all():
        return 2 * int(max(mask.shape))
    distances: NDArray[np.int32] = distance_transform_cdt(mask, "chessboard")
    return 2 * int(distances.max())


def resize(mask: PixelMask, height: int, width: int) -> PixelMask:
    """Resize a mask. A pixel of the result is set if any that it covers is, so that thin strokes stay."""
    return _cover(_cover(mask, height, axis=0), width, axis=1)


def _cover(mask: PixelMask, count: int, axis: int) -> PixelMask:
    """Resize along one axis: cell i covers from i · n / count to (i + 1) · n / count."""
    length = mask.shape[axis]
    if count == length:
        return mask
    first = np.arange(count) * length // count
    last = -(-(np.arange(count) + 1) * length // count) - 1
    covered: PixelMask = np.logical_or.reduceat(mask, first, axis=axis)  # up to the next one's first pixel
    result: PixelMask = covered | mask.take(last, axis=axis)
    return result


def opaque(pixels: NDArray[np.uint8]) -> PixelMask | None:
    """Return the opaque pixels of RGB or RGBA (H, W, C). None if all are opaque."""
    if pixels.shape[2] < 4:
        return None
    is_opaque: PixelMask = pixels[..., 3] >= THRESHOLD
    return None if is_opaque.all() else is_opaque


def object_mask(image: Image.Image) -> PixelMask:
    """Return the mask of an object, RGB or RGBA: its bright pixels or, if it has transparency, the opaque ones. Takes 2 bytes a pixel."""
    bright, is_opaque = (np.ones((image.height, image.width), np.bool_) for _ in range(2))
    for rows, pixels in _strips(image):
        bright[rows] = _brightest(pixels) >= THRESHOLD
        if pixels.shape[2] == 4:
            is_opaque[rows] = pixels[..., 3] >= THRESHOLD
    return bright if is_opaque.all() else is_opaque
