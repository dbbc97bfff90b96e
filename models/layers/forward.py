"""Parts that the forward calls of several architectures share: normalising images on the device, and reporting numbers of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.bundle_schema import Preprocess

ForwardFn = Callable[[nn.Module, Mapping[str, Tensor], Mapping[str, Any], Preprocess], dict[str, Tensor]]
"""(model, arrays on the model's device, options, preprocess) → arrays, one row per sample."""
TokenizeFn = Callable[[Mapping[str, NDArray[Any]]], tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]]
"""Texts of a batch → the arrays that the network gets, and those that go into the answer as they are."""


def normalise(pixels: Tensor, preprocess: Preprocess, dtype: torch.dtype) -> Tensor:
    """uint8 (B, H, W, 3) → (B, 3, H, W) in `dtype`: scaled to [0, 1], less the mean, divided by the standard deviation."""
    mean, std = (torch.tensor(values).to(pixels.device, non_blocking=True) for values in (preprocess.mean, preprocess.std))
    return ((pixels.float() / 255 - mean) / std).to(dtype).permute(0, 3, 1, 2)


def normalise_to_planes(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 (B, H, W, 3) → contiguous float32 (B, 3, H, W): the numbers of `normalise`, computed in place, which takes a third of the
    time on a CPU for readers that want planes."""
    mean, std = (torch.tensor(values).to(pixels.device).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    planes = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return planes.div_(255).sub_(mean).div_(std)


def token_counts(batch: int, tokens_in: int, tokens_out: int) -> Tensor:
    """→ int32 (batch, 2): in and out."""
    return torch.tensor([[tokens_in, tokens_out]], dtype=torch.int32).expand(batch, -1)


def classification_arrays(logits: Tensor, tokens_in: int, tokens_out: int) -> dict[str, Tensor]:
    """→ logits float32 (B, classes), tokens int32 (B, 2): in and out."""
    return {"logits": logits.float(), "tokens": token_counts(logits.shape[0], tokens_in, tokens_out)}
