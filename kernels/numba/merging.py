"""Size-weighted merging as one loop over the tokens that stay: each looks after the sources that go into it, in float32, rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.numba.arrays import as_array, as_flat_array, compile_loop, round_like, widen
from kernels.reference import Matching


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
