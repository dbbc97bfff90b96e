"""Files → pixels: transparent pictures on white, one resize, one cache file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.bundle import Preprocess
from models.media.centre_crop import centre, resized

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)

_LONGEST = 2  # what a training crop can use of a very long picture, in short sides


def open_on_white(path: Path) -> Image.Image:
    """The picture as RGB; transparency shows white, as a page does."""
    with Image.open(path) as image:
        if image.mode == "RGB":
            return image.copy()
        layered = image.convert("RGBA")
    canvas = Image.new("RGBA", layered.size, "white")
    canvas.alpha_composite(layered)
    return canvas.convert("RGB")


def to_model_size(image: Image.Image, preprocess: Preprocess) -> Pixels:
    """Short side to `short_side`, centre crop to (image_size, image_size, 3): what the service does with a picture."""
    size, resampling = preprocess.image_size, Image.Resampling[preprocess.interpolation.upper()]
    if preprocess.fit == "squeeze":
        return np.array(image.resize((size, size), resampling))
    width, height = resized(*image.size, preprocess.short_side)
    return np.array(image.resize((width, height), resampling).crop(centre(width, height, size)))


def load_for_training(root: Path, paths: Sequence[str], side: int, cache: Path) -> list[Pixels]:
    """Every picture with its short side at `side`, much longer ones cropped around the centre. Decoded once, then read from `cache`."""
    key = hashlib.sha256("\n".join([str(side), *paths]).encode()).hexdigest()[:16]
    file = cache / f"pictures-{key}.npz"
    if not file.is_file():
        with ThreadPoolExecutor() as threads:  # Pillow decodes without the interpreter lock
            pictures = list(threads.map(lambda path: _for_training(root / path, side), paths))
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".partial.npz")
        np.savez(partial, shapes=[p.shape for p in pictures], pixels=np.concatenate([p.ravel() for p in pictures]))
        partial.replace(file)
    with np.load(file) as stored:
        shapes, pixels = stored["shapes"], stored["pixels"]
    ends = np.cumsum(shapes.prod(axis=1))
    return [flat.reshape(shape) for flat, shape in zip(np.split(pixels, ends[:-1]), shapes, strict=True)]


def load_for_evaluation(root: Path, paths: Sequence[str], preprocess: Preprocess) -> Pixels:
    """(N, image_size, image_size, 3), prepared as the service prepares them."""
    return np.stack([to_model_size(open_on_white(root / path), preprocess) for path in paths])


def _for_training(path: Path, side: int) -> Pixels:
    picture = open_on_white(path)
    scale = side / min(picture.size)
    # rounded, unlike for evaluation: near-duplicates are found by these pixels, and with them the split
    width, height = (max(side, round(length * scale)) for length in picture.size)
    whole = picture.resize((width, height), Image.Resampling.BICUBIC)
    width, height = min(whole.width, _LONGEST * side), min(whole.height, _LONGEST * side)
    left, top = (whole.width - width) // 2, (whole.height - height) // 2
    return np.asarray(whole.crop((left, top, left + width, top + height)))
