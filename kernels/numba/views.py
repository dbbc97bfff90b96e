"""Tensors as the arrays that compiled loops read."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def numbers(x: Tensor) -> NDArray[Any]:
    """The same memory; bfloat16, which numpy does not know, as uint16."""
    x = x.view(torch.uint16) if x.dtype is torch.bfloat16 else x
    return x.numpy()


def flat(x: Tensor) -> NDArray[Any]:
    """All memory that a tensor with strides spans, in one dimension: loops over it are vectorised, those over strides are not."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return numbers(x.as_strided((span,), (1,)))
