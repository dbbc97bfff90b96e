"""Held-out drawings and the holes that are cut into them, functions of the seed and the drawing's number."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.bundle_schema import Preprocess
from models.systems.diffmae.masks import centre_mask
from starters.data.images.clip_art import ClipArt, ClipArtImages, series_of
from starters.evaluation.inpainting.settings import Hole
from training.data.load_image import to_model_size
from training.data.sampler import draw_of
from training.data.source import SamplePreparation
from training.errors import RecipeError
from training.objectives.masks import strokes

_MIN_AREA, _MAX_AREA = 0.10, 0.25
"""Range of a box's share of the area."""
_FLAT = 8 / 255
"""Minimum standard deviation of a hole's content; any method can fill a plain one, so another hole is drawn."""
_TRIES = 20


@dataclass(frozen=True)
class HeldOutDrawings:
    names: tuple[str, ...]
    pixels: Tensor
    """uint8 (N, S, S, 3), on white."""

    def __len__(self) -> int:
        return len(self.names)


def drawings(data: ClipArt, preprocess: Preprocess, cache: Path, chosen: slice) -> HeldOutDrawings:
    """Read one drawing of each held-out series. chosen: slice of them, in random order. Raises DataError, RecipeError."""
    source = data.open(SamplePreparation(preprocess, cache=cache))
    first = {series_of(name): number for number, name in reversed(list(enumerate(source.names)))}
    order = sorted(first.values(), key=lambda number: draw_of(0, number))[chosen]
    if len(order) < 2:
        raise RecipeError(f"release.quality: only {len(order)} series of drawings are held out for it; errors need two or more")
    return HeldOutDrawings(
        tuple(source.names[number] for number in order), torch.stack([_pixels(source, number, preprocess) for number in order])
    )


def _pixels(source: ClipArtImages, number: int, preprocess: Preprocess) -> Tensor:
    return torch.from_numpy(to_model_size(source.image(number), preprocess))


def cut(kind: Hole, pixels: Tensor, seed: int) -> Tensor:
    """Draw holes for images (N, S, S, 3): bool (N, S, S), True inside of a hole."""
    height, width = pixels.shape[1:3]
    if kind is Hole.CENTRE:
        return centre_mask(len(pixels), (height, width))
    return torch.stack([_with_content(kind, image, draw_of(seed, number)) for number, image in enumerate(pixels)])


def _with_content(kind: Hole, image: Tensor, draw: int) -> Tensor:
    """Draw a hole (S, S) whose content has more than one colour, if one of the tries does."""
    for attempt in range(_TRIES):
        number = draw_of(draw, attempt)
        height, width = image.shape[:2]
        hole = _box(height, width, random.Random(number)) if kind is Hole.BOXES else strokes(torch.tensor([number]), height, width)[0]
        if float((image[hole].float() / 255).std(dim=0).mean()) >= _FLAT:
            break
    return hole


def _box(height: int, width: int, dice: random.Random) -> Tensor:
    area, ratio = height * width * dice.uniform(_MIN_AREA, _MAX_AREA), math.exp(dice.uniform(-math.log(2), math.log(2)))
    w, h = min(width, round(math.sqrt(area * ratio))), min(height, round(math.sqrt(area / ratio)))
    left, top = dice.randint(0, width - w), dice.randint(0, height - h)
    hole = torch.zeros(height, width, dtype=torch.bool)
    hole[top : top + h, left : left + w] = True
    return hole
