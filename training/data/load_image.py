"""Files → pixels, as the service prepares them: transparent pictures on white, one resize."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from models.bundle_schema import Preprocess
from models.media.image_ops import centre_box, grey16_to_rgb, scaled_size

RGBPixels = npt.NDArray[np.uint8]  # (H, W, 3)


def open_on_white(path: Path | IO[bytes]) -> Image.Image:
    """Read an image upright and as RGB, as the service does: transparency becomes white, and 16-bit grey is scaled."""
    with Image.open(path) as image:
        image.load()
        with suppress(Exception):  # damaged EXIF spoils no picture
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "RGB" and not image.has_transparency_data:
            return image.copy()
        if image.mode.startswith("I"):
            return grey16_to_rgb(image)
        layered = image.convert("RGBA")
    canvas = Image.new("RGBA", layered.size, "white")
    canvas.alpha_composite(layered)
    return canvas.convert("RGB")


def to_model_size(image: Image.Image, preprocess: Preprocess) -> RGBPixels:
    """Return pixels (image_size, image_size, 3): the whole image resized, or the centre of one resized to `short_side`."""
    size, resampling = preprocess.image_size, Image.Resampling[preprocess.interpolation.upper()]
    if preprocess.fit == "squeeze":
        return np.array(image.resize((size, size), resampling))
    square = (preprocess.short_side, preprocess.short_side)
    width, height = square if preprocess.fit == "squeeze-crop" else scaled_size(*image.size, preprocess.short_side)
    return np.array(image.resize((width, height), resampling).crop(centre_box(width, height, size)))


def load(paths: Sequence[Path], preprocess: Preprocess) -> RGBPixels:
    """Return pixels (N, image_size, image_size, 3), preprocessed as by the service."""
    return np.stack([to_model_size(open_on_white(path), preprocess) for path in paths])
