"""Grey of 16 bits as everybody sees it."""

from __future__ import annotations

import numpy as np
from PIL import Image


def grey16_to_rgb(grey: Image.Image) -> Image.Image:
    """Round a picture of one of Pillow's modes for whole numbers to 8 bits, as RGB: 65535 and what is above it is 255."""
    values = np.asarray(grey).astype(np.uint32).clip(0, 65535)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
