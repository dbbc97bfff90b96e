"""Bipartite matching: cosines, row maxima and the choice of the r best, without the matrix of cosines ever being in memory.

Three kernels: `_best_partner` streams tiles of odd tokens past each tile of even ones and keeps the best cosine of each row; `_rank` puts
the rows in order; `_select` writes the matching. Equal cosines are decided by position, as in the reference: the first one wins.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from kernels.triton.autotune import autotune, batch_bucket, bucket

_TILES = [
    triton.Config({"BLOCK_EVEN": even, "BLOCK_ODD": odd}, num_warps=warps, num_stages=2)
    for even, odd, warps in ((64, 64, 4), (32, 64, 4), (64, 32, 4), (128, 64, 8), (128, 128, 8))
]


_WIDENED = tl.constexpr(bool(knobs.runtime.interpret))
"""Triton's interpreter keeps bfloat16 as integers and would multiply these; in float32 the products are the same."""


@triton.jit
def dot(a, b, total):
    """Compute total + a b in float32: (M, K), (K, N), (M, N). Never in TF32, which would decide near ties differently."""
    if _WIDENED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@autotune(_TILES, key=["channels", "samples_bucket", "tokens_bucket"], interpreted=triton.Config({"BLOCK_EVEN": 64, "BLOCK_ODD": 32}))
@triton.jit(do_not_specialize=["tokens"])
def _best_partner(
    metric,
    best,
    partner,
    stride_sample,
    stride_token,
    tokens,
    samples_bucket,
    tokens_bucket,
    channels,
    PROTECTED: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_EVEN: tl.constexpr,
    BLOCK_ODD: tl.constexpr,
):
    """Find the highest cosine of each even token, and the odd token that has it: (B, T, C) → (B, A) each."""
    evens, odds = (tokens + 1) // 2, tokens // 2
    sample = tl.program_id(0).to(tl.int64)  # in the one dimension of the grid that may be larger than 65,535
    even = tl.program_id(1) * BLOCK_EVEN + tl.arange(0, BLOCK_EVEN)
    channel = tl.arange(0, BLOCK_CHANNELS)
    rows = metric + sample * stride_sample + (2 * even).to(tl.int64)[:, None] * stride_token
    columns = metric + sample * stride_sample
    best_cosine = tl.full((BLOCK_EVEN,), float("-inf"), tl.float32)
    best_odd = tl.full((BLOCK_EVEN,), 0, tl.int32)
    even_square = tl.full((BLOCK_EVEN,), 0.0, tl.float32)
    for start in range(0, odds, BLOCK_ODD):
        odd = start + tl.arange(0, BLOCK_ODD)
        product = tl.full((BLOCK_EVEN, BLOCK_ODD), 0.0, tl.float32)
        odd_square = tl.full((BLOCK_ODD,), 0.0, tl.float32)
        even_square = tl.full((BLOCK_EVEN,), 0.0, tl.float32)
        for first in range(0, channels, BLOCK_CHANNELS):
            inside = first + channel < channels
            a = tl.load(rows + (first + channel)[None, :], mask=(even < evens)[:, None] & inside[None, :], other=0.0)  # (E, C)
            b = tl.load(
                columns + (2 * odd + 1).to(tl.int64)[None, :] * stride_token + (first + channel)[:, None],
                mask=(odd < odds)[None, :] & inside[:, None],
                other=0.0,
            )  # (C, O)
            product = dot(a, b, product)
            even_square += tl.sum(a.to(tl.float32) * a.to(tl.float32), axis=1)
            odd_square += tl.sum(b.to(tl.float32) * b.to(tl.float32), axis=0)
        # The length of the row does not decide which column is best: it divides once, at the end.
        cosine = product * tl.div_rn(tl.full((BLOCK_ODD,), 1.0, tl.float32), tl.sqrt_rn(odd_square))[None, :]
        undefined = (cosine != cosine) | (even_square == 0.0)[:, None]  # zeros have no direction: NaN comes first in PyTorch's order
        cosine = tl.where(undefined, float("inf"), cosine)
        allowed = odd < odds
        if PROTECTED == 2:
            allowed = allowed & (odd > 0)
        cosine = tl.where(allowed[None, :], cosine, float("-inf"))
        tile_cosine, tile_odd = tl.max(cosine, axis=1, return_indices=True, return_indices_tie_break_left=True)
        better = tile_cosine > best_cosine
        best_odd = tl.where(better, start + tile_odd, best_odd)
        best_cosine = tl.where(better, tile_cosine, best_cosine)
    best_cosine = tl.div_rn(best_cosine, tl.sqrt_rn(even_square))
    best_cosine = tl.where(best_cosine != best_cosine, float("inf"), best_cosine)
    if PROTECTED >= 1:
        best_cosine = tl.where(even == 0, float("-inf"), best_cosine)  # the class token is never a source
    tl.store(best + sample * evens + even, best_cosine, mask=even < evens)
    tl.store(partner + sample * evens + even, best_odd, mask=even < evens)


@triton.jit(do_not_specialize=["evens"])
def _rank(best, rank, evens, BLOCK_EVEN: tl.constexpr, BLOCK_OTHERS: tl.constexpr):
    """Compute the position of each cosine in falling order, equal ones by their index: (B, A) → (B, A)."""
    sample = tl.program_id(0).to(tl.int64)
    even = tl.program_id(1) * BLOCK_EVEN + tl.arange(0, BLOCK_EVEN)
    cosine = tl.load(best + sample * evens + even, mask=even < evens, other=0.0)
    before = tl.full((BLOCK_EVEN,), 0, tl.int32)
    for start in range(0, evens, BLOCK_OTHERS):
        other = start + tl.arange(0, BLOCK_OTHERS)
        theirs = tl.load(best + sample * evens + other, mask=other < evens, other=float("-inf"))
        equal_and_first = (theirs[None, :] == cosine[:, None]) & (other[None, :] < even[:, None])
        higher = (theirs[None, :] > cosine[:, None]) | equal_and_first
        before += tl.sum((higher & (other < evens)[None, :]).to(tl.int32), axis=1)
    tl.store(rank + sample * evens + even, before, mask=even < evens)


@triton.jit(do_not_specialize=["tokens", "r"])
def _select(rank, partner, unmerged, src, dst, tokens, r, PROTECTED: tl.constexpr, BLOCK: tl.constexpr):
    """Write the fields of a `Matching` from ranks and partners (B, A). One program per sample; BLOCK >= A."""
    evens, odds = (tokens + 1) // 2, tokens // 2
    stay = evens - r
    sample = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    valid = token < evens
    place = tl.load(rank + sample * evens + token, mask=valid, other=0)
    towards = tl.load(partner + sample * evens + token, mask=valid, other=0)
    moved = valid & (place < r)
    tl.store(src + sample * r + place, (2 * token).to(tl.int64), mask=moved)
    tl.store(dst + sample * r + place, (towards + stay).to(tl.int64), mask=moved)
    kept_even = valid & (place >= r)
    if PROTECTED == 0:
        row = place - r
    else:
        row = tl.cumsum(kept_even.to(tl.int32), axis=0) - 1  # ascending: special tokens stay in front
    odd_row = stay + token
    if PROTECTED == 2:  # the distillation token moves up behind the class token
        row = tl.where(row > 0, row + 1, row)
        odd_row = tl.where(token == 0, 1, odd_row)
    tl.store(unmerged + sample * (tokens - r) + row, (2 * token).to(tl.int64), mask=kept_even)
    tl.store(unmerged + sample * (tokens - r) + odd_row, (2 * token + 1).to(tl.int64), mask=token < odds)


@torch.library.custom_op("opsin::bipartite_match", mutates_args=())
def bipartite_match(metric: Tensor, r: int, protected: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the fields of a `Matching`, int64: `unmerged` (B, T - r), `src` (B, r) and `dst` (B, r).

    metric: (B, T, C); 1 <= r <= (T - protected) // 2.
    """
    batch, tokens, channels = metric.shape
    unmerged, src, dst = _fake_bipartite_match(metric, r, protected)
    if batch == 0:
        return unmerged, src, dst
    metric = metric if metric.stride(2) == 1 else metric.contiguous()
    evens = (tokens + 1) // 2
    best = torch.empty(batch, evens, dtype=torch.float32, device=metric.device)
    partner, rank = (torch.empty(batch, evens, dtype=torch.int32, device=metric.device) for _ in range(2))
    block_channels = min(128 if metric.element_size() == 2 else 64, max(16, triton.next_power_of_2(channels)))
    with torch.cuda.device_of(metric):
        _best_partner[lambda meta: (batch, triton.cdiv(evens, meta["BLOCK_EVEN"]))](
            metric,
            best,
            partner,
            metric.stride(0),
            metric.stride(1),
            tokens,
            batch_bucket(batch),
            bucket(tokens),
            channels,
            PROTECTED=protected,
            BLOCK_CHANNELS=block_channels,
        )
        _rank[(batch, triton.cdiv(evens, 64))](best, rank, evens, BLOCK_EVEN=64, BLOCK_OTHERS=64)
        _select[(batch,)](rank, partner, unmerged, src, dst, tokens, r, PROTECTED=protected, BLOCK=bucket(evens))
    return unmerged, src, dst


@bipartite_match.register_fake
def _fake_bipartite_match(metric: Tensor, r: int, protected: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, _ = metric.shape
    unmerged = metric.new_empty(batch, tokens - r, dtype=torch.int64)
    return unmerged, metric.new_empty(batch, r, dtype=torch.int64), metric.new_empty(batch, r, dtype=torch.int64)
