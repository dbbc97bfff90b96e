"""Sizes and boxes of torchvision's Resize and CenterCrop, and grey images of 16 bits. Imports no torch."""

from __future__ import annotations

import numpy as np
from PIL import Image


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return width and height for a shorter side of `short_side`; the other one is truncated."""
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def centre_box(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the middle `size` × `size` pixels."""
    left, top = round((width - size) / 2), round((height - size) / 2)
    return left, top, left + size, top + size


def grey16_to_rgb(grey: Image.Image) -> Image.Image:
    """Round an image of one of Pillow's integer modes to 8 bits, as RGB: 65535 and above becomes 255."""
    values = np.asarray(grey).astype(np.uint32).clip(0, 65535)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
