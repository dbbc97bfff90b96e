"""Checkpoints as transformers saves them, with random weights, and the bundles that are made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.bundle import Bundle
from models.bundle_schema import Preprocess
from models.checkpoints import import_checkpoint
from tests.support.bundles.vit import sealed

Pixels = NDArray[np.uint8]


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights of which each one counts, the same in each run: fresh ones are zeros and ones in biases, norms and scales."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "logit_scale" not in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 0.15 if parameter.dim() > 1 else parameter * 0.5 + noise * 0.2)
    return model.eval()


def save(model: nn.Module, folder: Path, processor: Any = None, **options: Any) -> Path:
    """processor: an image processor of the library, or the content of its file."""
    model.save_pretrained(folder, **options)
    if isinstance(processor, dict):
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    elif processor is not None:
        processor.save_pretrained(folder)
    return folder


def change(file: Path, **fields: Any) -> None:
    """Change fields of a file of JSON; None removes one."""
    content = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def imported(folder: Path, **overrides: str) -> Bundle:
    spec, weights = import_checkpoint(folder, family=None, labels=None, overrides=overrides, name="test", version="1", license=None)
    root = folder.parent / f"{folder.name}-bundles"
    root.mkdir()
    return sealed(root, spec, weights)


def noise(count: int, *shape: int) -> Pixels:
    """(count, *shape, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape, 3), dtype=np.uint8)


def normalised(pixels: Pixels, preprocess: Preprocess) -> Tensor:
    """(B, ..., H, W, 3) → (B, ..., 3, H, W) float32, as the library does."""
    mean, std = (torch.tensor(values) for values in (preprocess.mean, preprocess.std))
    return ((torch.from_numpy(pixels).float() / 255 - mean) / std).movedim(-1, -3).contiguous()
