"""Tensors as the arrays that compiled loops read: float32 as it is, bfloat16 as the upper 16 bits of a float32 (uint16)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.core.caching import FunctionCache
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor


class _DiskCache(FunctionCache):
    """Compiled code on disk. If the disk is full, the next process compiles again."""

    def save_overload(self, signature, result):
        with suppress(OSError):
            super().save_overload(signature, result)


def compile_loop(**options: Any) -> Callable[..., Any]:
    """Compile the decorated loop, which runs without Python's lock, does not check divisions by zero, and is cached on disk."""

    def decorate(function: Callable[..., Any]) -> Any:
        loop = njit(nogil=True, error_model="numpy", **options)(function)
        with suppress(RuntimeError):  # there is no folder that numba could write
            loop._cache = _DiskCache(function)
        return loop

    return decorate


def as_array(x: Tensor) -> NDArray[Any]:
    """Return a view of the same memory and shape; bfloat16, which NumPy does not have, as uint16."""
    x = x.view(torch.uint16) if x.dtype is torch.bfloat16 else x
    return x.numpy()


def as_flat_array(x: Tensor) -> NDArray[Any]:
    """Return all memory that a tensor with strides spans, shape (span,): loops over it are vectorised, loops over strides are not."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return as_array(x.as_strided((span,), (1,)))


def widen(stored):
    """Convert to float32."""
    raise NotImplementedError


def round_like(value, stored):
    """Convert a float32 to the format of `stored`, rounded to the nearest, ties to even."""
    raise NotImplementedError


@overload(widen)
def _widen(stored):
    if isinstance(stored, types.Float):
        return lambda stored: stored

    def from_bfloat16(stored):
        return np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)

    return from_bfloat16


@overload(round_like)
def _round_like(value, stored):
    if isinstance(stored, types.Float):
        return lambda value, stored: value

    def to_bfloat16(value, stored):
        bits = np.float32(value).view(np.uint32)
        if bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
            return np.uint16(0x7FC0)  # not a number: rounding might make it infinite
        return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

    return to_bfloat16
