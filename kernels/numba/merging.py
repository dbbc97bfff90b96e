"""Size-weighted merging as one loop over the tokens that stay: each looks after the sources that go into it, in float32, rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.numba.floats import compiled, rounded_like, widen
from kernels.numba.views import flat, numbers
from kernels.reference import Matching


def merge(x: Tensor, size: Tensor | None, matching: Matching, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, T, C), (B, T, 1) → (B, T_out, C), (B, T_out, 1). residual: (B, T, C) of the same dtype, added to x before."""
    batch, tokens, channels = x.shape
    rows = matching.kept.shape[1]
    x = x if x.stride(2) == 1 else x.contiguous()
    added = x if residual is None else residual if residual.stride(2) == 1 else residual.contiguous()
    merged, merged_size = torch.empty(batch, rows, channels, dtype=x.dtype), torch.empty(batch, rows, 1)
    size = torch.ones(batch, tokens, 1) if size is None else size.contiguous()
    indices = (index.contiguous().numpy() for index in (matching.kept, matching.sources, matching.into))
    places = (flat(x), x.stride(0), x.stride(1), flat(added), added.stride(0), added.stride(1), residual is not None)
    _merge(*places, size.view(batch, tokens).numpy(), *indices, numbers(merged), merged_size.view(batch, rows).numpy())
    return merged, merged_size


@compiled()
def _merge(
    x: Any,
    x_sample: int,
    x_token: int,
    residual: Any,
    residual_sample: int,
    residual_token: int,
    has_residual: bool,
    size: Any,
    kept: Any,
    sources: Any,
    into: Any,
    merged: Any,
    merged_size: Any,
) -> None:
    batch, rows, channels = merged.shape
    count = sources.shape[1]
    begins, following = np.empty(rows, np.int64), np.empty(count, np.int64)  # a list of sources for each row
    own, moved, total = np.empty(channels, np.float32), np.empty(channels, np.float32), np.empty(channels, np.float32)
    for b in range(batch):
        begins[:] = -1
        for row in range(rows):
            merged_size[b, row] = size[b, kept[b, row]]
        for s in range(count - 1, -1, -1):  # from the end, so that sources are added in their order
            following[s] = begins[into[b, s]]
            begins[into[b, s]] = s
        for s in range(count):
            merged_size[b, into[b, s]] += size[b, sources[b, s]]
        for row in range(rows):
            at, more = b * x_sample + kept[b, row] * x_token, b * residual_sample + kept[b, row] * residual_token
            token, branch, to = x[at : at + channels], residual[more : more + channels], merged[b, row]
            s = begins[row]
            if s < 0 and not has_residual:
                for c in range(channels):
                    to[c] = token[c]
                continue
            if s < 0:
                for c in range(channels):
                    to[c] = rounded_like(widen(token[c]) + widen(branch[c]), token[c])
                continue
            _read(token, branch, has_residual, own)
            for c in range(channels):
                total[c] = own[c]
            while s >= 0:
                at, more = b * x_sample + sources[b, s] * x_token, b * residual_sample + sources[b, s] * residual_token
                share = size[b, sources[b, s]] / merged_size[b, row]
                _read(x[at : at + channels], residual[more : more + channels], has_residual, moved)
                for c in range(channels):
                    total[c] += (moved[c] - own[c]) * share
                s = following[s]
            for c in range(channels):
                to[c] = rounded_like(total[c], token[c])


@compiled()
def _read(token: Any, branch: Any, has_branch: bool, wide: Any) -> None:
    """One token as float32, its residual branch added."""
    if has_branch:
        for c in range(len(wide)):
            wide[c] = widen(rounded_like(widen(token[c]) + widen(branch[c]), token[c]))
    else:
        for c in range(len(wide)):
            wide[c] = widen(token[c])
