"""Sizes and boxes of torchvision's Resize and CenterCrop, for the service and for training alike. No torch is needed."""

from __future__ import annotations


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height once the shorter one is `short_side`; the other is truncated."""
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def centre_box(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the middle `size` × `size` pixels."""
    left, top = round((width - size) / 2), round((height - size) / 2)
    return left, top, left + size, top + size
