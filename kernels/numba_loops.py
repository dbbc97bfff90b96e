"""The merging of tokens as loops that numba compiles for this CPU: the extra `fast`. Inference in float32 and bfloat16.

`bipartite_match` and `merge` mean what their namesakes in `kernels.reference` mean; `kernels.ops` chooses. numba keeps compiled code
between processes, next to this file or in the folder given to `load_compiled_loops`. Loops read float32 as it is, bfloat16 as the upper 16
bits of a float32 (uint16).
"""

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

from kernels.reference import Matching


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


def merge(x: Tensor, size: Tensor | None, matching: Matching, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """Merge tokens and sizes: (B, T, C), (B, T, 1) → (B, T_out, C), (B, T_out, 1).

    residual: (B, T, C) of the same dtype, added to x before.
    """
    batch, tokens, channels = x.shape
    rows = matching.unmerged.shape[1]
    x = x if x.stride(2) == 1 else x.contiguous()
    added = x if residual is None else residual if residual.stride(2) == 1 else residual.contiguous()
    merged, merged_size = torch.empty(batch, rows, channels, dtype=x.dtype), torch.empty(batch, rows, 1)
    size = torch.ones(batch, tokens, 1) if size is None else size.contiguous()
    indices = (index.contiguous().numpy() for index in (matching.unmerged, matching.src, matching.dst))
    places = (as_flat_array(x), x.stride(0), x.stride(1), as_flat_array(added), added.stride(0), added.stride(1), residual is not None)
    _merge(*places, size.view(batch, tokens).numpy(), *indices, as_array(merged), merged_size.view(batch, rows).numpy())
    return merged, merged_size


@compile_loop()
def _merge(
    x: Any,
    x_sample: int,
    x_token: int,
    residual: Any,
    residual_sample: int,
    residual_token: int,
    has_residual: bool,
    size: Any,
    unmerged: Any,
    src: Any,
    dst: Any,
    merged: Any,
    merged_size: Any,
) -> None:
    batch, rows, channels = merged.shape
    count = src.shape[1]
    begins, following = np.empty(rows, np.int64), np.empty(count, np.int64)  # a list of sources for each row
    stays, moved, total = np.empty(channels, np.float32), np.empty(channels, np.float32), np.empty(channels, np.float32)
    for b in range(batch):
        begins[:] = -1
        for row in range(rows):
            merged_size[b, row] = size[b, unmerged[b, row]]
        for s in range(count - 1, -1, -1):  # from the end, so that sources are added in their order
            following[s] = begins[dst[b, s]]
            begins[dst[b, s]] = s
        for s in range(count):
            merged_size[b, dst[b, s]] += size[b, src[b, s]]
        for row in range(rows):
            at, residual_at = b * x_sample + unmerged[b, row] * x_token, b * residual_sample + unmerged[b, row] * residual_token
            token, branch, to = x[at : at + channels], residual[residual_at : residual_at + channels], merged[b, row]
            s = begins[row]
            if s < 0 and not has_residual:
                for c in range(channels):
                    to[c] = token[c]
                continue
            if s < 0:
                for c in range(channels):
                    to[c] = round_like(widen(token[c]) + widen(branch[c]), token[c])
                continue
            _read(token, branch, has_residual, stays)
            for c in range(channels):
                total[c] = stays[c]
            while s >= 0:
                at, residual_at = b * x_sample + src[b, s] * x_token, b * residual_sample + src[b, s] * residual_token
                share = size[b, src[b, s]] / merged_size[b, row]
                _read(x[at : at + channels], residual[residual_at : residual_at + channels], has_residual, moved)
                for c in range(channels):
                    total[c] += (moved[c] - stays[c]) * share
                s = following[s]
            for c in range(channels):
                to[c] = round_like(total[c], token[c])


@compile_loop()
def _read(token: Any, branch: Any, has_branch: bool, wide: Any) -> None:
    """Read one token as float32 and add its residual branch."""
    if has_branch:
        for c in range(len(wide)):
            wide[c] = widen(round_like(widen(token[c]) + widen(branch[c]), token[c]))
    else:
        for c in range(len(wide)):
            wide[c] = widen(token[c])
