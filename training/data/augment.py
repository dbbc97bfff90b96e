"""One image → what a network sees in training: augmented as the recipe says, or prepared as the service does, then normalised.

The random crop and the flip are our own few lines, drawn by the sample's number; RandAugment is timm's.
"""

from __future__ import annotations

import math
import random
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.bundle_schema import Preprocess
from training.data.load_image import to_model_size
from training.data.source import SamplePreparation

_ASPECT = (3 / 4, 4 / 3)


def prepare_image(image: Image.Image, preparation: SamplePreparation, draw: int) -> Tensor:
    """Augment an RGB image and normalise it to float32 (3, S, S)."""
    preprocess, augment = preparation.require_preprocess(), preparation.augment
    if augment.crop_scale is None:
        return normalise(np.array(to_model_size(image, preprocess)), preprocess)
    rng = random.Random(draw)
    resampling = Image.Resampling[preprocess.interpolation.upper()]
    side = preprocess.image_size
    image = image.resize((side, side), resampling, box=random_crop(*image.size, augment.crop_scale, rng))
    if augment.flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augment.rand_augment:
        image = _rand_augmented(image, augment.rand_augment, preprocess, draw)
    pixels = normalise(np.array(image), preprocess)
    if augment.erase and rng.random() < augment.erase:
        _erase(pixels, rng, draw)
    return pixels


def normalise(pixels: np.ndarray, preprocess: Preprocess) -> Tensor:
    """uint8 (…, H, W, 3) → float32 (3, …, H, W)."""
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    return ((torch.from_numpy(pixels).float() / 255 - mean) / std).movedim(-1, 0).contiguous()


def random_crop(width: int, height: int, scale: tuple[float, float], rng: random.Random) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a random crop: a share of the area, uniform; the aspect ratio uniform in its logarithm.

    After ten that do not fit, the largest central crop whose aspect ratio does.
    """
    for _ in range(10):
        area, ratio = width * height * rng.uniform(*scale), math.exp(rng.uniform(*map(math.log, _ASPECT)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * _ASPECT[1])), min(height, round(width / _ASPECT[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


@cache
def _policy(notation: str, fill: tuple[int, int, int], side: int) -> Any:
    from timm.data.auto_augment import rand_augment_transform

    return rand_augment_transform(notation, {"translate_const": int(side * 0.45), "img_mean": fill})


def _rand_augmented(image: Image.Image, notation: str, preprocess: Preprocess, draw: int) -> Image.Image:
    """timm draws from the global generators of `random` and NumPy: they are seeded for this image and put back."""
    red, green, blue = (round(255 * value) for value in preprocess.mean)
    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(draw)
    np.random.seed(draw % 2**32)
    try:
        augmented: Image.Image = _policy(notation, (red, green, blue), preprocess.image_size)(image)
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)
    return augmented


def _erase(pixels: Tensor, rng: random.Random, draw: int) -> None:
    """Fill a rectangle of 2 % to a third of the area with normal noise, in place (3, S, S)."""
    height, width = pixels.shape[1:]
    for _ in range(10):
        area, ratio = height * width * rng.uniform(0.02, 1 / 3), math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            pixels[:, top : top + h, left : left + w] = torch.randn(3, h, w, generator=torch.Generator().manual_seed(draw))
            return
