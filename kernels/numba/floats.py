"""Numbers of the two formats that the loops read: float32 as it is, bfloat16 as the upper 16 bits of a float32 (uint16)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numba import njit, types
from numba.core.caching import FunctionCache
from numba.extending import overload


class _Kept(FunctionCache):
    """Compiled code on disk. Where that is full, the next process compiles again."""

    def save_overload(self, signature, result):
        with suppress(OSError):
            super().save_overload(signature, result)


def compiled(**options: Any) -> Callable[..., Any]:
    """Decorate a loop: without Python's lock, kept between processes, and a division by zero is no exception. All three are what makes the
    loops fast."""

    def decorate(function: Callable[..., Any]) -> Any:
        loop = njit(nogil=True, error_model="numpy", **options)(function)
        with suppress(RuntimeError):  # there is no folder that numba could write
            loop._cache = _Kept(function)
        return loop

    return decorate


def widen(stored):
    """→ float32."""
    raise NotImplementedError


def rounded_like(value, stored):
    """A float32 in the format of `stored`, rounded to the nearest, ties to even."""
    raise NotImplementedError


@overload(widen)
def _widen(stored):
    if isinstance(stored, types.Float):
        return lambda stored: stored

    def from_bfloat16(stored):
        return np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)

    return from_bfloat16


@overload(rounded_like)
def _rounded_like(value, stored):
    if isinstance(stored, types.Float):
        return lambda value, stored: value

    def to_bfloat16(value, stored):
        bits = np.float32(value).view(np.uint32)
        if bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
            return np.uint16(0x7FC0)  # not a number: rounding might make it infinite
        return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

    return to_bfloat16
