"""Filled pixels composited into their image, and the result as a file: every byte outside the mask stays as it was.

Images may have 50 megapixels and more: they are processed some rows at a time, and only one byte a pixel is allocated at full size.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.media import poisson_blending
from server.media.masks import PixelBox, PixelMask, bounds
from server.media.rgb import on_white

Blend = Literal["membrane", "none"]

PNG_EFFORT = 3
"""Compression level of zlib: half the time of the default for a few percent of size."""
MAX_PROFILE_BYTES = 2**20
"""Maximum size of a colour profile that is kept."""
STRIP_PIXELS = 256 * 1024
BLENDING_BYTES = 64 * 2**20
"""Memory limit of strips and membrane together: a strip takes up to 120 bytes a pixel, the membrane `poisson_blending.SOLVING_BYTES`."""
RAMP_TILE = 1024
"""Side of the tiles in which a ramp is computed, to save memory."""
EDGE_LIMIT = 48.0
"""Maximum deviation in grey levels of the difference at one point of a hole's edge from the usual one (`BoundaryDifferences.membrane`).
With it fillings of drawings and photographs were nearer to the truth than without a limit, and than without a membrane."""
COLOUR_SPACE = slice(16, 20)
"""Slice of an ICC profile that names its colour space (ICC.1:2022, 7.2)."""


def compose(image: Image.Image, made: NDArray[np.uint8], box: PixelBox, mask: PixelMask, feather: int, blend: Blend = "none") -> None:
    """Composite pixels into `image`, RGB or RGBA: made (h, w, 3) is resized to `box`; mask (H, W). Filled pixels are opaque.

    feather: width in pixels of the ramp inside the mask, over which the image blends into the new pixels. blend: `membrane` shifts their
    colours to meet those around the hole, transparent ones as composited on white (`poisson_blending`).

    Takes a byte a pixel of the hole's box for the ramp, and `blending_bytes`."""
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
    """Return the memory for strips and membrane together, for an image with this many pixels."""
    return min(BLENDING_BYTES, BLENDING_BYTES * pixels // STRIP_PIXELS)


def _membrane(
    image: Image.Image, made: NDArray[np.uint8], box: PixelBox, mask: PixelMask, area: PixelBox
) -> poisson_blending.Membrane | None:
    """Return None if no pixel next to the hole is known."""
    edge = poisson_blending.BoundaryDifferences(area.height, area.width)
    for strip, new in _strips(made, box, area):
        around = image.crop((strip.left - 1, strip.top - 1, strip.left + strip.width + 1, strip.top + strip.height + 1))
        surroundings = np.asarray(on_white(around) if around.mode == "RGBA" else around)  # as the network saw it
        hole, beyond = np.zeros(surroundings.shape[:2], np.bool_), np.ones(surroundings.shape[:2], np.bool_)
        rows, columns = _within(strip.top, strip.height, mask.shape[0]), _within(strip.left, strip.width, mask.shape[1])
        inner = (
            slice(rows.start - strip.top + 1, rows.stop - strip.top + 1),
            slice(columns.start - strip.left + 1, columns.stop - strip.left + 1),
        )
        hole[inner], beyond[inner] = mask[rows, columns], False
        edge.add(strip.top - area.top, surroundings, new, hole, beyond)
    return edge.membrane(EDGE_LIMIT)


def _within(start: int, length: int, limit: int) -> slice:
    """Return a range with one more on both sides, within the image."""
    return slice(max(0, start - 1), min(start + length + 1, limit))


def _strips(made: NDArray[np.uint8], box: PixelBox, area: PixelBox) -> Iterator[tuple[PixelBox, NDArray[np.uint8]]]:
    """Yield new pixels at the image's scale, a few rows of the area at a time, with their boxes in the image."""
    source, scale = Image.fromarray(made), made.shape[0] / box.height
    left, rows = area.left - box.left, max(1, STRIP_PIXELS // box.width)
    for start in range(0, box.height, rows):
        end = min(start + rows, box.height)
        top, bottom = max(start, area.top - box.top), min(end, area.top + area.height - box.top)
        if top >= bottom:
            continue
        if made.shape[:2] == (box.height, box.width):
            new = made[start:end]
        else:
            part = (0, start * scale, made.shape[1], end * scale)
            new = np.asarray(source.resize((box.width, end - start), Image.Resampling.BICUBIC, part))
        yield PixelBox(area.left, box.top + top, area.width, bottom - top), new[top - start : bottom - start, left : left + area.width]


def _blend(image: NDArray[np.uint8], new: NDArray[np.uint8], filled: PixelMask, share: NDArray[np.floating] | None) -> None:
    """Blend into `image` in place. share: weight of the new pixels, (h, w); None for 1."""
    made, old = new[filled], image[filled]  # (pixels, channels)
    if share is not None:
        weight = share[filled][:, np.newaxis]
        under: NDArray[np.floating] = old[:, :3].astype(np.float32)
        if image.shape[2] == 4:  # as the network saw it, on white
            under = 255 + (under - 255) * (old[:, 3:] / np.float32(255))
        made = np.rint(weight * made + (1 - weight) * under).astype(np.uint8)
    old[:, :3], old[:, 3:] = made, 255
    image[filled] = old


def ramp(mask: PixelMask, area: PixelBox, feather: int) -> NDArray[np.uint8]:
    """Return steps in all eight directions to the nearest pixel outside the mask, (h, w) of the area, at most `feather` (up to 255).

    The image's border does not count as outside. Takes about twelve bytes a pixel of a tile as well."""
    from scipy.ndimage import distance_transform_cdt  # takes a moment, and few requests need it

    steps = np.full((area.height, area.width), feather, np.uint8)
    for top in range(0, area.height, RAMP_TILE):
        for left in range(0, area.width, RAMP_TILE):
            tile = steps[top : top + RAMP_TILE, left : left + RAMP_TILE]
            above, before = min(feather, area.top + top), min(feather, area.left + left)  # more distant pixels do not matter
            rows = slice(area.top + top - above, area.top + top + tile.shape[0] + feather)
            columns = slice(area.left + left - before, area.left + left + tile.shape[1] + feather)
            near = mask[rows, columns]
            if not near.all():
                distances = distance_transform_cdt(near, "chessboard")[above : above + tile.shape[0], before : before + tile.shape[1]]
                np.minimum(distances, feather, out=tile, casting="unsafe")
    return steps


def to_png(image: Image.Image, profile: bytes | None = None) -> bytes:
    """Encode as PNG, with the colour profile if it describes RGB."""
    icc_profile = profile if isinstance(profile, bytes) and profile[COLOUR_SPACE] == b"RGB " and len(profile) <= MAX_PROFILE_BYTES else None
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=PNG_EFFORT, icc_profile=icc_profile)
    return file.getvalue()
