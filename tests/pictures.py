"""Pictures for tests, and what the tiny ViT says of them when it is asked without any service."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from models.bundle import Bundle
from models.loading import load

SIDE = 32


def picture(seed: int) -> bytes:
    """A PNG of 32 x 32 random pixels, the size that the tiny ViT takes, so that nothing is resized."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def expected_scores(bundle: Bundle, seeds: range) -> np.ndarray:
    """(len(seeds), classes): softmax scores of the pictures, computed off-line in float32."""
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(picture(seed)))) for seed in seeds])
    logits = load(bundle).forward({"pixels": pixels}, {"merge": [0, 0]})["logits"]
    return torch.from_numpy(logits).softmax(-1).numpy()
