"""Random numbers of samples: functions of a sample's draw, a stream and a position.

A counter-based generator: every value is the finaliser of SplitMix64 ("Fast splittable pseudorandom number generators", OOPSLA 2014)
applied to a counter, which starts where draw and stream say. So a sample draws the same numbers on any rank, in any batch, on CPU and GPU
(normal values to the last bit of float32). It is not cryptographic.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar, cast

import torch
from torch import Tensor

from training import collectives


def _to_signed(value: int) -> int:
    """Return the int64 with the bits of an unsigned number."""
    return value - 2**64 if value >= 2**63 else value


_STEP = _to_signed(0x9E3779B97F4A7C15)
_FIRST = _to_signed(0xBF58476D1CE4E5B9)
_SECOND = _to_signed(0x94D049BB133111EB)
_LOW = 0xFFFFFFFF

Stream = str | int
"""Names one use of randomness, so that two uses in one sample are independent."""

F = TypeVar("F", bound=Callable[..., Tensor])


def _eager(function: F) -> F:
    """Keep compilers out: their C++ need not wrap integers as torch's operators do."""
    return cast(F, torch.compiler.disable(function))  # type: ignore[no-untyped-call]


@_eager
def words(draw: Tensor, count: int, stream: Stream) -> Tensor:
    """Draw (B, count) int64 words of 64 random bits from draws (B,) int64. The first words do not depend on `count`."""
    start = _mix(_mix(draw) ^ _key(stream)).unsqueeze(1)
    return _mix(start + _STEP * torch.arange(1, count + 1, device=draw.device))


@_eager
def uniform(draw: Tensor, shape: Sequence[int], stream: Stream) -> Tensor:
    """Draw (B, *shape) float32 in [0, 1), multiples of 2^-24, from draws (B,) int64."""
    bits = _shift(words(draw, math.prod(shape), stream), 40)
    return (bits.float() * 2.0**-24).view(-1, *shape)


@_eager
def normal(draw: Tensor, shape: Sequence[int], stream: Stream) -> Tensor:
    """Draw (B, *shape) float32 from N(0, 1) by Box and Muller, two of each word, from draws (B,) int64."""
    count = math.prod(shape)
    both = words(draw, -(-count // 2), stream)
    u, v = (((half & _LOW).double() + 0.5) / 2**32 for half in (both >> 32, both))  # inside (0, 1)
    radius, angle = (-2 * u.log()).sqrt(), 2 * math.pi * v
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)
    return pairs[:, :count].float().view(-1, *shape)


@_eager
def integers(draw: Tensor, shape: Sequence[int], low: int, high: int, stream: Stream) -> Tensor:
    """Draw (B, *shape) int64 from low to high - 1 from draws (B,) int64.

    Probabilities differ by less than (high - low) · 2^-53.
    """
    share = _shift(words(draw, math.prod(shape), stream), 11).double() * 2.0**-53
    return low + (share * (high - low)).long().view(-1, *shape)


@_eager
def permutation(draw: Tensor, count: int, stream: Stream) -> Tensor:
    """Draw (B, count) int64, each row a permutation of 0 … count - 1, from draws (B,) int64."""
    return words(draw, count, stream).argsort(dim=1, stable=True)


@_eager
def batch_draw(draw: Tensor) -> Tensor:
    """Return one draw (1,) int64 for all samples of a step on all ranks, whatever their order."""
    return collectives.all_reduce_sum(_mix(draw).sum(dim=0, keepdim=True))


def _mix(x: Tensor) -> Tensor:
    """Apply a bijection of 64-bit words in which every input bit flips half of the output bits. Products wrap."""
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros: int64's own shift repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


@cache
def _key(stream: Stream) -> int:
    return int.from_bytes(hashlib.blake2b(repr(stream).encode(), digest_size=8).digest(), "big", signed=True)
