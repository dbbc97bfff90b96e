"""Pictures that lose a half, and simple ways to give it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Half(StrEnum):
    """The hidden one."""

    LEFT = "left"
    RIGHT = "right"
    UPPER = "upper"
    LOWER = "lower"


Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Squares:
    """Pictures in the middle of white squares."""

    pixels: Tensor
    """uint8 (N, S, S, 3)."""
    boxes: tuple[Box, ...]
    """Where in its square each picture lies."""

    def cut(self, pixels: Tensor) -> list[Image.Image]:
        """Squares like these, uint8 (N, S, S, 3) → the pictures in them."""
        return [Image.fromarray(square.numpy()).crop(box) for square, box in zip(pixels, self.boxes, strict=True)]


def squares(images: Sequence[Image.Image], side: int) -> Squares:
    """RGB images, each as large as its square allows."""
    pixels, boxes = [], []
    for image in images:
        scale = side / max(image.size)
        width, height = (max(1, round(scale * length)) for length in image.size)
        left, top = (side - width) // 2, (side - height) // 2
        square = Image.new("RGB", (side, side), "white")
        square.paste(image.resize((width, height), Image.Resampling.BICUBIC), (left, top))
        pixels.append(torch.from_numpy(np.array(square)))
        boxes.append((left, top, left + width, top + height))
    return Squares(torch.stack(pixels), tuple(boxes))


def hidden(half: Half, side: int) -> Tensor:
    """bool (S, S), True in the half that is hidden."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    first, last = slice(side // 2), slice(side // 2, side)
    if half in (Half.LEFT, Half.RIGHT):
        mask[:, first if half is Half.LEFT else last] = True
    else:
        mask[first if half is Half.UPPER else last] = True
    return mask


def blank(pixels: Tensor, half: Half, *, mean: bool = False) -> Tensor:
    """The visible half alone, on white or on its mean colour. uint8 (N, S, S, 3)."""
    mask = hidden(half, pixels.shape[1])
    colour = pixels[:, ~mask].float().mean(dim=1).round()[:, None, None] if mean else 255
    return torch.where(mask.unsqueeze(-1), colour, pixels).to(torch.uint8)


def mirrored(pixels: Tensor, half: Half) -> Tensor:
    """The visible half and its mirror image."""
    flipped = pixels.flip(2 if half in (Half.LEFT, Half.RIGHT) else 1)
    return torch.where(hidden(half, pixels.shape[1]).unsqueeze(-1), flipped, pixels)


def visible(found: Squares, half: Half) -> list[Image.Image]:
    """The visible halves of the pictures, cut out."""
    middle = found.pixels.shape[1] // 2
    images = []
    for square, (left, top, right, bottom) in zip(found.pixels, found.boxes, strict=True):
        box = {
            Half.LEFT: (middle, top, right, bottom),
            Half.RIGHT: (left, top, middle, bottom),
            Half.UPPER: (left, middle, right, bottom),
            Half.LOWER: (left, top, right, middle),
        }[half]
        images.append(Image.fromarray(square.numpy()).crop(box))
    return images
