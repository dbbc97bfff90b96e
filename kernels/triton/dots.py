"""The matrix product of tiles."""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

_WIDENED = tl.constexpr(bool(knobs.runtime.interpret))
"""Triton's interpreter keeps bfloat16 as integers and would multiply these; in float32 the products are the same."""


@triton.jit
def dot(a, b, total):
    """total + a b in float32: (M, K), (K, N), (M, N). Never in TF32, which would decide near ties otherwise than the reference."""
    if _WIDENED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")
