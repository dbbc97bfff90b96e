"""Filled pixels into the image that they belong to, and the result as a file: every byte outside the mask stays as it was.

Images may have 50 megapixels and more: all is done some rows at a time, and what is made here of the image's size takes a byte a pixel.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.media import poisson_blending
from server.media.masks import Box, Mask, bounds
from server.media.rgb import on_white

Blend = Literal["membrane", "none"]

PNG_EFFORT = 3
"""zlib's level: half the time of the default for a few percent of size."""
MOST_PROFILE = 2**20
"""Bytes of a colour profile that is kept."""
STRIP_PIXELS = 256 * 1024
BLENDING_BYTES = 64 * 2**20
"""Bound for strips and membrane together: a strip takes up to 120 bytes a pixel, the membrane `membranes.SOLVING_BYTES`."""
RAMP_TILE = 1024
"""Side of what is computed of a ramp at once, so that it takes little memory."""
EDGE_LIMIT = 48.0
"""Grey levels by which the difference at one place of a hole's edge may deviate from the usual one (`membranes.Edge.membrane`): with it
fillings of drawings and of photographs were nearer to the truth than without a limit, and than without a membrane."""
OF_RGB = slice(16, 20)
"""Where an ICC profile names the colours that it describes (ICC.1:2022, 7.2)."""


def compose(image: Image.Image, made: NDArray[np.uint8], box: Box, mask: Mask, feather: int, blend: Blend = "none") -> None:
    """Into `image`, RGB or RGBA. made (h, w, 3), which is resized to `box` of the image; mask (H, W). Filled pixels are opaque.

    feather: width in pixels of the ramp inside the mask, in which the image turns into what was made. blend: `membrane` moves the colours
    of what was made so that they meet those around the hole, transparent ones as laid on white (`membranes`).

    Takes a byte a pixel of the hole's box for the ramp, and `blending_bytes`.
    """
    area = bounds(mask)
    if area is None:
        return
    steps = ramp(mask, area, feather) if feather else None
    membrane = _membrane(image, made, box, mask, area) if blend == "membrane" else None
    for strip, new in _strips(made, box, area):
        top, bottom = strip.top - area.top, strip.top - area.top + strip.height
        fitted, filled = new, mask[strip.top : strip.top + strip.height, strip.left : strip.left + strip.width]
        if membrane is not None:
            fitted = np.clip(np.rint(new + membrane.rows(top, bottom, area.width)), 0, 255).astype(np.uint8)
        pixels = np.array(image.crop((strip.left, strip.top, strip.left + strip.width, strip.top + strip.height)))
        _blend(pixels, fitted, filled, None if steps is None else steps[top:bottom] / np.float32(feather))
        image.paste(Image.fromarray(pixels), (strip.left, strip.top))


def blending_bytes(pixels: int) -> int:
    """Memory for strips and membrane together, of an image of so many pixels."""
    return min(BLENDING_BYTES, BLENDING_BYTES * pixels // STRIP_PIXELS)


def _membrane(image: Image.Image, made: NDArray[np.uint8], box: Box, mask: Mask, area: Box) -> poisson_blending.Membrane | None:
    """None where no pixel beside the hole is known."""
    edge = poisson_blending.BoundaryDifferences(area.height, area.width)
    for strip, new in _strips(made, box, area):
        around = image.crop((strip.left - 1, strip.top - 1, strip.left + strip.width + 1, strip.top + strip.height + 1))
        known = np.asarray(on_white(around) if around.mode == "RGBA" else around)  # as the network saw it
        hole, beyond = np.zeros(known.shape[:2], np.bool_), np.ones(known.shape[:2], np.bool_)
        rows, columns = _within(strip.top, strip.height, mask.shape[0]), _within(strip.left, strip.width, mask.shape[1])
        here = (
            slice(rows.start - strip.top + 1, rows.stop - strip.top + 1),
            slice(columns.start - strip.left + 1, columns.stop - strip.left + 1),
        )
        hole[here], beyond[here] = mask[rows, columns], False
        edge.add(strip.top - area.top, known, new, hole, beyond)
    return edge.membrane(EDGE_LIMIT)


def _within(begin: int, length: int, limit: int) -> slice:
    """One more on both sides, where the image has them."""
    return slice(max(0, begin - 1), min(begin + length + 1, limit))


def _strips(made: NDArray[np.uint8], box: Box, area: Box) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    """The pixels that were made, in the image's size: some rows of the area at a time, of a few pixels, and where they lie in the image."""
    source, scale = Image.fromarray(made), made.shape[0] / box.height
    left, rows = area.left - box.left, max(1, STRIP_PIXELS // box.width)
    for begin in range(0, box.height, rows):
        end = min(begin + rows, box.height)
        top, bottom = max(begin, area.top - box.top), min(end, area.top + area.height - box.top)
        if top >= bottom:
            continue
        if made.shape[:2] == (box.height, box.width):
            new = made[begin:end]
        else:
            part = (0, begin * scale, made.shape[1], end * scale)
            new = np.asarray(source.resize((box.width, end - begin), Image.Resampling.BICUBIC, part))
        yield Box(area.left, box.top + top, area.width, bottom - top), new[top - begin : bottom - begin, left : left + area.width]


def _blend(image: NDArray[np.uint8], new: NDArray[np.uint8], filled: Mask, share: NDArray[np.floating] | None) -> None:
    """Into `image`, in place. share: of what is new, (h, w); None for all of it."""
    made, old = new[filled], image[filled]  # (pixels, channels)
    if share is not None:
        weight = share[filled][:, np.newaxis]
        under: NDArray[np.floating] = old[:, :3].astype(np.float32)
        if image.shape[2] == 4:  # as the network saw it, on white
            under = 255 + (under - 255) * (old[:, 3:] / np.float32(255))
        made = np.rint(weight * made + (1 - weight) * under).astype(np.uint8)
    old[:, :3], old[:, 3:] = made, 255
    image[filled] = old


def ramp(mask: Mask, area: Box, feather: int) -> NDArray[np.uint8]:
    """Steps to all eight sides to the nearest pixel outside the mask, at most `feather` (up to 255), (h, w) of the area. The image's border
    is no outside. Takes some twelve bytes a pixel of a tile besides."""
    from scipy.ndimage import distance_transform_cdt  # takes a moment, and few ask for it

    steps = np.full((area.height, area.width), feather, np.uint8)
    for top in range(0, area.height, RAMP_TILE):
        for left in range(0, area.width, RAMP_TILE):
            tile = steps[top : top + RAMP_TILE, left : left + RAMP_TILE]
            above, before = min(feather, area.top + top), min(feather, area.left + left)  # what is further away does not matter
            rows = slice(area.top + top - above, area.top + top + tile.shape[0] + feather)
            columns = slice(area.left + left - before, area.left + left + tile.shape[1] + feather)
            near = mask[rows, columns]
            if not near.all():
                away = distance_transform_cdt(near, "chessboard")[above : above + tile.shape[0], before : before + tile.shape[1]]
                np.minimum(away, feather, out=tile, casting="unsafe")
    return steps


def to_png(image: Image.Image, profile: bytes | None = None) -> bytes:
    """With a colour profile if it describes RGB."""
    kept = profile if isinstance(profile, bytes) and profile[OF_RGB] == b"RGB " and len(profile) <= MOST_PROFILE else None
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=PNG_EFFORT, icc_profile=kept)
    return file.getvalue()
