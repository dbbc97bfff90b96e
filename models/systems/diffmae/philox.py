"""Counter-based random numbers (Philox-4x32-10, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A sample's noise does not depend on the other samples of its batch, their order, padding, or a pause between steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def counter_normal(seeds: Tensor, step: Tensor, places: Tensor, values: int) -> Tensor:
    """Draw float32 from N(0, 1): (B, M, values). seeds: (B,) int64; step: (B,), from -1 up; places: (B, M), raster indices of patches.

    Equal (seed, step, place, value) give equal numbers, whatever their position in the batch.
    """
    blocks = torch.arange(-(-values // 4), device=places.device)
    batch, count = places.shape
    shape = (batch, count, len(blocks))
    counter = (
        blocks.expand(shape),
        places.unsqueeze(-1).expand(shape),
        (step + 1).view(batch, 1, 1).expand(shape),
        torch.zeros(shape, dtype=torch.int64, device=places.device),
    )
    key = seeds.view(batch, 1, 1)
    words = philox(counter, (key & _LOW, key >> 32 & _LOW))
    uniform = [(word.double() + 0.5) / 2**32 for word in words]  # inside (0, 1)
    pairs = [_box_muller(uniform[0], uniform[1]), _box_muller(uniform[2], uniform[3])]
    drawn = torch.stack([value for pair in pairs for value in pair], dim=-1)  # (B, M, blocks, 4)
    return drawn.flatten(2)[..., :values].float()


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four 32-bit words for each counter, in int64 tensors of the shape (...) that counter and key broadcast to."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]  # may wrap: the bits are those of the unsigned product
        a, b, c, d = _high(second) ^ b ^ k0, second & _LOW, _high(first) ^ d ^ k1, first & _LOW
        k0, k1 = k0 + _WEYL[0] & _LOW, k1 + _WEYL[1] & _LOW
    return a, b, c, d


def _high(product: Tensor) -> Tensor:
    return product >> 32 & _LOW


def _box_muller(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    radius, angle = (-2 * u.log()).sqrt(), 2 * math.pi * v
    return radius * angle.cos(), radius * angle.sin()
