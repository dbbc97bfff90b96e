"""Bipartite matching as loops: heads summed and normalised in one pass, row maxima and their places in one pass, one sort a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.numba.arrays import as_flat_array, compile_loop, round_like, widen
from kernels.reference import Matching


def bipartite_match(metric: Tensor, r: int, protected: int) -> Matching | None:
    """Match like `reference.bipartite_match`, for 0 < r <= (T - protected) // 2.

    metric: (B, T, C), or (B, H, T, C), of which the sum over H counts. Return None if a row has no direction (zeros, infinities or NaN),
    which only the reference handles.
    """
    metric = metric.unsqueeze(1) if metric.dim() == 3 else metric
    metric = metric if metric.stride(3) == 1 else metric.contiguous()
    batch, _, tokens, channels = metric.shape
    even = torch.empty(batch, (tokens + 1) // 2, channels)
    odd = torch.empty(batch, tokens // 2, channels)
    if not _directions(as_flat_array(metric), tuple(metric.shape), metric.stride(), even.numpy(), odd.numpy()):
        return None
    with torch.autocast("cpu", enabled=False):
        scores = odd @ even.mT  # (B, O, A)
    unmerged, src, dst = (torch.empty(batch, rows, dtype=torch.int64) for rows in (tokens - r, r, r))
    _select(scores.numpy(), r, protected, unmerged.numpy(), src.numpy(), dst.numpy())
    return Matching(unmerged, src, dst)


@compile_loop(fastmath={"reassoc", "contract"})
def _directions(metric: Any, shape: Any, strides: Any, even: Any, odd: Any) -> bool:
    """Sum over heads, scale to length 1, and split even and odd positions. Return False if a length is zero, infinite or NaN."""
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
                row[c] = widen(round_like(row[c], metric[0]))
                square += row[c] * row[c]
            if not 0 < square < np.inf:
                fine = False
            length = np.sqrt(square)
            to = odd[b, t // 2] if t % 2 else even[b, t // 2]
            for c in range(channels):
                to[c] = row[c] / length
    return fine


@compile_loop()
def _select(scores: Any, r: int, protected: int, unmerged: Any, src: Any, dst: Any) -> None:
    """Fill the fields of a `Matching` from the scores.

    scores: (B, O, A), odd against even positions, so that the maxima over O of neighbouring A are found side by side.
    """
    batch, odds, evens = scores.shape
    first = 1 if protected == 2 else 0  # the distillation token, odd, is never a destination
    best, place = np.empty(evens, np.float32), np.empty(evens, np.int32)
    order, stays = np.empty(evens, np.int64), np.empty(evens, np.bool_)
    for b in range(batch):
        best[:] = -np.inf
        place[:] = first
        for o in range(first, odds):
            row, index = scores[b, o], np.int32(o)
            for a in range(evens):
                better = row[a] > best[a]
                best[a] = row[a] if better else best[a]
                place[a] = index if better else place[a]
        if protected:
            best[0] = -np.inf  # the class token, even, is never a source
        for a in range(evens):
            order[a] = (_falling(best[a]) << 32) | a  # equal ones by position
        order.sort()
        stays[:] = True
        for s in range(r):
            a = order[s] & 0xFFFFFFFF
            stays[a] = False
            src[b, s] = 2 * a
            dst[b, s] = evens - r + place[a]
        if protected:
            to = 0
            for a in range(evens):
                if stays[a]:
                    unmerged[b, to] = 2 * a
                    to += 1 + (first if a == 0 else 0)  # the distillation token moves up behind the class token
        else:
            for s in range(r, evens):
                unmerged[b, s - r] = 2 * (order[s] & 0xFFFFFFFF)
        if first:
            unmerged[b, 1] = 1
        for o in range(first, odds):
            unmerged[b, evens - r + o] = 2 * o + 1


@compile_loop()
def _falling(value: Any) -> Any:
    """Return an integer that is smaller for larger numbers, and the same for both zeros."""
    bits = np.int64(np.float32(value).view(np.int32))
    return -bits if bits >= 0 else bits & 0x7FFFFFFF
