"""Bipartite matching as loops: heads summed and normalised in one pass, row maxima and their places in one pass, one sort a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.numba.floats import compiled, rounded_like, widen
from kernels.numba.views import flat
from kernels.reference import Matching


def bipartite_match(metric: Tensor, r: int, protected: int) -> Matching | None:
    """(B, T, C), or (B, H, T, C) of which the sum over H counts, 0 < r <= (T - protected) // 2 → as `reference.bipartite_match`.

    None where a row has no direction: zeros, infinities or what is not a number. The reference says what becomes of these.
    """
    metric = metric.unsqueeze(1) if metric.dim() == 3 else metric
    metric = metric if metric.stride(3) == 1 else metric.contiguous()
    batch, _, tokens, channels = metric.shape
    even = torch.empty(batch, (tokens + 1) // 2, channels)
    odd = torch.empty(batch, tokens // 2, channels)
    if not _directions(flat(metric), tuple(metric.shape), metric.stride(), even.numpy(), odd.numpy()):
        return None
    with torch.autocast("cpu", enabled=False):
        scores = odd @ even.mT  # (B, O, A)
    kept, sources, into = (torch.empty(batch, rows, dtype=torch.int64) for rows in (tokens - r, r, r))
    _select(scores.numpy(), r, protected, kept.numpy(), sources.numpy(), into.numpy())
    return Matching(kept, sources, into)


@compiled(fastmath={"reassoc", "contract"})
def _directions(metric: Any, shape: Any, strides: Any, even: Any, odd: Any) -> bool:
    """Sum over heads, scaled to length 1, even and odd positions apart. False if a length is zero, infinite or not a number."""
    batch, heads, tokens, channels = shape
    row = np.empty(channels, np.float32)
    fine = True
    for b in range(batch):
        for t in range(tokens):
            row[:] = 0.0
            for h in range(heads):
                start = b * strides[0] + h * strides[1] + t * strides[2]
                one = metric[start : start + channels]
                for c in range(channels):
                    row[c] += widen(one[c])
            square = np.float32(0)
            for c in range(channels):
                row[c] = widen(rounded_like(row[c], metric[0]))
                square += row[c] * row[c]
            if not 0 < square < np.inf:
                fine = False
            length = np.sqrt(square)
            to = odd[b, t // 2] if t % 2 else even[b, t // 2]
            for c in range(channels):
                to[c] = row[c] / length
    return fine


@compiled()
def _select(scores: Any, r: int, protected: int, kept: Any, sources: Any, into: Any) -> None:
    """scores: (B, O, A), odd against even positions, so that the maxima over O of neighbouring A are found side by side."""
    batch, odds, evens = scores.shape
    first = 1 if protected == 2 else 0  # the distillation token, odd, is never a destination
    best, place = np.empty(evens, np.float32), np.empty(evens, np.int32)
    order, stays = np.empty(evens, np.int64), np.empty(evens, np.bool_)
    for b in range(batch):
        best[:] = -np.inf
        place[:] = first
        for o in range(first, odds):
            row, here = scores[b, o], np.int32(o)
            for a in range(evens):
                better = row[a] > best[a]
                best[a] = row[a] if better else best[a]
                place[a] = here if better else place[a]
        if protected:
            best[0] = -np.inf  # the class token, even, is never a source
        for a in range(evens):
            order[a] = (_falling(best[a]) << 32) | a  # equal ones by position
        order.sort()
        stays[:] = True
        for s in range(r):
            a = order[s] & 0xFFFFFFFF
            stays[a] = False
            sources[b, s] = 2 * a
            into[b, s] = evens - r + place[a]
        if protected:
            to = 0
            for a in range(evens):
                if stays[a]:
                    kept[b, to] = 2 * a
                    to += 1 + (first if a == 0 else 0)  # the distillation token moves up behind the class token
        else:
            for s in range(r, evens):
                kept[b, s - r] = 2 * (order[s] & 0xFFFFFFFF)
        if first:
            kept[b, 1] = 1
        for o in range(first, odds):
            kept[b, evens - r + o] = 2 * o + 1


@compiled()
def _falling(value: Any) -> Any:
    """An integer that is the smaller, the larger a number is; equal for both zeros."""
    bits = np.int64(np.float32(value).view(np.int32))
    return -bits if bits >= 0 else bits & 0x7FFFFFFF
