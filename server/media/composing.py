"""Filled pixels into the image that they belong to, and the result as a file: every byte outside the mask stays as it was."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from server.media import membranes
from server.media.images import on_white
from server.media.masks import Box, Mask, bounds

Blend = Literal["membrane", "none"]

PNG_EFFORT = 3
"""zlib's level: half the time of the default for a few percent of size."""
MOST_PROFILE = 2**20
"""Bytes of a colour profile that is kept."""
STRIP_PIXELS = 256 * 1024
BLENDING_BYTES = 64 * 2**20
"""Bound for strips and membrane together: a strip takes up to 120 bytes a pixel, the membrane `membranes.SOLVING_BYTES`."""
OF_RGB = slice(16, 20)
"""Where an ICC profile names the colours that it describes (ICC.1:2022, 7.2)."""


def compose(
    image: NDArray[np.uint8], made: NDArray[np.uint8], box: Box, mask: Mask, feather: int, blend: Blend = "none"
) -> NDArray[np.uint8]:
    """image (H, W, 3 or 4); made (h, w, 3), which is resized to `box` of the image; mask (H, W). Filled pixels are opaque.

    feather: width in pixels of the ramp inside the mask, in which the image turns into what was made. blend: `membrane` moves the colours
    of what was made so that they meet those around the hole, transparent ones as laid on white (`membranes`).

    Takes the memory of the result, of what was made in the size of `box`, of a ramp of four bytes a pixel of the hole's box, and
    `BLENDING_BYTES`.
    """
    area = bounds(mask)
    if area is None:
        return image
    here = (slice(area.top, area.top + area.height), slice(area.left, area.left + area.width))
    new = _resized(made, box)[area.top - box.top :, area.left - box.left :][: area.height, : area.width]
    share = ramp(mask, area, feather) if feather else None
    membrane = _membrane(image, new, mask, area) if blend == "membrane" else None
    composed = image.copy()
    part, filled = composed[here], mask[here]
    for top, bottom in _strips(area):  # blending takes several times the memory of its pixels
        strip, fitted = slice(top, bottom), new[top:bottom]
        if membrane is not None:
            fitted = np.clip(np.rint(fitted + membrane.rows(top, bottom, area.width)), 0, 255).astype(np.uint8)
        _blend(part[strip], fitted, filled[strip], None if share is None else share[strip])
    return composed


def _membrane(image: NDArray[np.uint8], new: NDArray[np.uint8], mask: Mask, area: Box) -> membranes.Membrane | None:
    """None where no pixel beside the hole is known."""
    edge = membranes.Edge(area.height, area.width)
    rows, columns = np.arange(-1, area.height + 1) + area.top, np.arange(-1, area.width + 1) + area.left
    off_left = (columns < 0) | (columns >= mask.shape[1])
    inside = columns.clip(0, mask.shape[1] - 1)
    for top, bottom in _strips(area):
        lines = rows[top : bottom + 2]
        beyond = ((lines < 0) | (lines >= mask.shape[0]))[:, np.newaxis] | off_left
        around = np.ix_(lines.clip(0, mask.shape[0] - 1), inside)
        edge.add(top, _on_white(image[around]), new[top:bottom], mask[around], beyond)
    return edge.membrane()


def _on_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w, 3 or 4) → (h, w, 3), as the network saw them."""
    return pixels if pixels.shape[2] == 3 else np.asarray(on_white(Image.fromarray(pixels)))


def _strips(area: Box) -> Iterator[tuple[int, int]]:
    """First row and end of each, of a few pixels."""
    rows = max(1, STRIP_PIXELS // area.width)
    return ((top, min(top + rows, area.height)) for top in range(0, area.height, rows))


def _blend(image: NDArray[np.uint8], new: NDArray[np.uint8], filled: Mask, share: NDArray[np.float32] | None) -> None:
    """Into `image`, in place. share: of what is new, (h, w); None for all of it."""
    if image.shape[2] == 4:
        new = np.concatenate([new, np.full((*new.shape[:2], 1), 255, np.uint8)], axis=2)
    made = new[filled]  # (pixels, channels)
    if share is not None:
        weight = share[filled][:, np.newaxis]
        made = np.rint(weight * made + (1 - weight) * image[filled]).astype(np.uint8)
    image[filled] = made


def ramp(mask: Mask, area: Box, feather: int) -> NDArray[np.float32]:
    """Share of what was made, (h, w) of the area: distance to the nearest pixel outside the mask, in steps to all eight sides, over
    `feather` (up to 255), at most 1. The image's border is no outside."""
    from scipy.ndimage import distance_transform_cdt  # takes a moment, and few ask for it

    inner = _with_margin(mask, area)  # (h + 2, w + 2)
    if inner.all():
        return np.ones((area.height, area.width), np.float32)
    steps = np.minimum(distance_transform_cdt(inner, "chessboard")[1:-1, 1:-1], feather)
    share: NDArray[np.float32] = (steps / np.float32(feather)).astype(np.float32)
    return share


def to_png(pixels: NDArray[np.uint8], profile: bytes | None = None) -> bytes:
    """(H, W, 3 or 4) → PNG, with a colour profile if it describes RGB."""
    kept = profile if profile is not None and profile[OF_RGB] == b"RGB " and len(profile) <= MOST_PROFILE else None
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=PNG_EFFORT, icc_profile=kept)
    return file.getvalue()


def _resized(made: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    if made.shape[:2] == (box.height, box.width):
        return made
    return np.asarray(Image.fromarray(made).resize((box.width, box.height), Image.Resampling.BICUBIC))


def _with_margin(mask: Mask, area: Box) -> Mask:
    """The area and one pixel around it; beyond the image there is no end of the mask."""
    wide = np.pad(mask, 1, mode="edge")
    part: Mask = wide[area.top : area.top + area.height + 2, area.left : area.left + area.width + 2]
    return part
