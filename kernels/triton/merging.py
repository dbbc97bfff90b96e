"""Size-weighted merging: tokens, their sizes and the map of their sources in one pass, in the same order of additions every time.

Each output row has programs of its own that look for the sources which go there and add them by index: no atomic additions, so that the
same input gives the same bits; and no row is written that another program writes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.autotune import autotune, batch_bucket, bucket

_UNTRACED, _FIRST, _TRACED = 0, 1, 2
"""No map of sources; the map of a first merge, which starts from the identity; the map that an earlier merge left."""

_TILES = [
    triton.Config({"BLOCK_ROWS": rows, "BLOCK_SOURCES": src}, num_warps=warps)
    for rows, src, warps in ((1, 128, 1), (1, 256, 4), (4, 128, 4), (8, 64, 4), (16, 64, 8))
]


@autotune(_TILES, key=["channels", "samples_bucket", "sources_bucket"], interpreted=triton.Config({"BLOCK_ROWS": 64, "BLOCK_SOURCES": 32}))
@triton.jit(do_not_specialize=["tokens", "rows", "count"])
def _merge(
    x,
    size,
    source,
    unmerged,
    src,
    dst,
    merged,
    merged_size,
    merged_source,
    stride_sample,
    stride_token,
    tokens,
    rows,
    count,
    samples_bucket,
    sources_bucket,
    channels,
    inputs,
    channel_blocks,
    SIZED: tl.constexpr,
    TRACE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SOURCES: tl.constexpr,
):
    """Merge tokens, sizes and the map of sources: (B, T, C), (B, T), (B, T, T_in) → (B, R, C), (B, R), (B, R, T_in).

    A program owns some rows and some channels or input tokens.
    """
    sample = tl.program_id(0).to(tl.int64)  # in the one dimension of the grid that may be larger than 65,535
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    block = tl.program_id(2)
    valid = row < rows
    tracing = block >= channel_blocks  # the blocks after those of the channels
    column = tl.where(tracing, block - channel_blocks, block) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    of_x = column < tl.where(tracing, 0, channels)
    of_source = column < tl.where(tracing, inputs, 0)
    keeps = tl.load(unmerged + sample * rows + row, mask=valid, other=0)
    total = tl.full((BLOCK_ROWS,), 1.0, ACCUMULATOR)
    if SIZED:
        total = tl.load(size + sample * tokens + keeps, mask=valid, other=1.0).to(ACCUMULATOR)
    stays_at = x + sample * stride_sample + keeps[:, None] * stride_token + column[None, :]
    stays = tl.load(stays_at, mask=valid[:, None] & of_x[None, :], other=0.0).to(ACCUMULATOR)  # (R, C)
    pull = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, ACCUMULATOR)
    traced = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, tl.float32)
    if TRACE == 1:
        traced = (column[None, :] == keeps[:, None]).to(tl.float32)
    if TRACE == 2:
        traced_at = source + (sample * tokens + keeps[:, None]) * inputs + column[None, :]
        traced = tl.load(traced_at, mask=valid[:, None] & of_source[None, :], other=0.0)
    for start in range(0, count, BLOCK_SOURCES):
        index = start + tl.arange(0, BLOCK_SOURCES)
        target = tl.load(dst + sample * count + index, mask=index < count, other=-1)
        comes = target[None, :] == row[:, None]  # (R, S)
        last = tl.full((BLOCK_ROWS,), start - 1, tl.int32)
        for _ in range(tl.max(tl.sum(comes.to(tl.int32), axis=1), axis=0)):
            following = comes & (index[None, :] > last[:, None])
            last = tl.min(tl.where(following, index[None, :], count), axis=1)  # the next source of each row, `count` if there is none
            found = last < count
            token = tl.load(src + sample * count + last, mask=found, other=0)
            weight = tl.full((BLOCK_ROWS,), 1.0, ACCUMULATOR)
            if SIZED:
                weight = tl.load(size + sample * tokens + token, mask=found, other=0.0).to(ACCUMULATOR)
            total += tl.where(found, weight, 0.0)
            value_at = x + sample * stride_sample + token[:, None] * stride_token + column[None, :]
            value = tl.load(value_at, mask=found[:, None] & of_x[None, :], other=0.0).to(ACCUMULATOR)
            pull += tl.where(found[:, None], weight[:, None] * (value - stays), 0.0)
            if TRACE == 1:
                traced = tl.maximum(traced, (found[:, None] & (column[None, :] == token[:, None])).to(tl.float32))
            if TRACE == 2:
                theirs_at = source + (sample * tokens + token[:, None]) * inputs + column[None, :]
                traced = tl.maximum(traced, tl.load(theirs_at, mask=found[:, None] & of_source[None, :], other=0.0))
    # A row that receives nothing keeps its bits: its pull is zero.
    out_row = sample * rows + row.to(tl.int64)
    merged_row = stays + pull / total[:, None]
    tl.store(
        merged + out_row[:, None] * channels + column[None, :], merged_row.to(merged.dtype.element_ty), mask=valid[:, None] & of_x[None, :]
    )
    tl.store(merged_size + out_row, total.to(merged_size.dtype.element_ty), mask=valid & (row * 0 + block == 0))
    if TRACE > 0:
        tl.store(merged_source + out_row[:, None] * inputs + column[None, :], traced, mask=valid[:, None] & of_source[None, :])


@triton.jit(do_not_specialize=["tokens", "rows"])
def _merge_backward(
    grad,
    size,
    merged_size,
    owner,
    grad_x,
    stride_sample,
    stride_row,
    tokens,
    rows,
    channels,
    SIZED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Give every token its share of the gradient of the row that it went into: (B, R, C) → (B, T, C)."""
    sample = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    channel = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    row = tl.load(owner + sample * tokens + token, mask=token < tokens, other=-1)
    belongs = row >= 0
    share = 1.0 / tl.load(merged_size + sample * rows + row, mask=belongs, other=1.0).to(ACCUMULATOR)
    if SIZED:
        share = share * tl.load(size + sample * tokens + token, mask=belongs, other=0.0).to(ACCUMULATOR)
    inside = (channel < channels)[None, :]
    at = grad + sample * stride_sample + row[:, None] * stride_row + channel[None, :]
    value = tl.load(at, mask=belongs[:, None] & inside, other=0.0).to(ACCUMULATOR) * share[:, None]
    out = grad_x + (sample * tokens + token[:, None]) * channels + channel[None, :]
    tl.store(out, value.to(grad_x.dtype.element_ty), mask=(token < tokens)[:, None] & inside)


@torch.library.custom_op("opsin::merge", mutates_args=())
def merge(
    x: Tensor, size: Tensor | None, source: Tensor | None, unmerged: Tensor, src: Tensor, dst: Tensor, traced: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge tokens, sizes and, if traced, the map of sources, which is empty otherwise.

    (B, T, C), (B, T, 1), (B, T, T_in) → (B, R, C), (B, R, 1), (B, R, T_in). Only x has a gradient: sizes are counts.
    """
    batch, tokens, channels = x.shape
    rows, count = unmerged.shape[1], src.shape[1]
    merged, merged_size, merged_source = _fake_merge(x, size, source, unmerged, src, dst, traced)
    if batch == 0:
        return merged, merged_size, merged_source
    x = x if x.stride(2) == 1 else x.contiguous()
    unmerged, src, dst = unmerged.contiguous(), src.contiguous(), dst.contiguous()
    size = None if size is None else size.contiguous()
    source = None if source is None else source.contiguous()
    inputs = merged_source.shape[2]
    block = min(256, triton.next_power_of_2(channels))
    with torch.cuda.device_of(x):
        channel_blocks = triton.cdiv(channels, block)
        columns = channel_blocks + triton.cdiv(inputs, block)
        _merge[lambda meta: (batch, triton.cdiv(rows, meta["BLOCK_ROWS"]), columns)](
            x,
            size,
            source,
            unmerged,
            src,
            dst,
            merged,
            merged_size,
            merged_source,
            x.stride(0),
            x.stride(1),
            tokens,
            rows,
            count,
            batch_bucket(batch),
            bucket(count),
            channels,
            inputs,
            channel_blocks,
            SIZED=size is not None,
            TRACE=_UNTRACED if not traced else _FIRST if source is None else _TRACED,
            ACCUMULATOR=_accumulator(x),
            BLOCK_COLUMNS=block,
        )
    return merged, merged_size, merged_source


@merge.register_fake
def _fake_merge(
    x: Tensor, size: Tensor | None, source: Tensor | None, unmerged: Tensor, src: Tensor, dst: Tensor, traced: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, channels = x.shape
    rows = unmerged.shape[1]
    inputs = 0 if not traced else tokens if source is None else source.shape[2]
    dtype = torch.float32 if size is None else size.dtype
    return (
        x.new_empty(batch, rows, channels),
        x.new_empty(batch, rows, 1, dtype=dtype),
        x.new_empty(batch, rows, inputs, dtype=torch.float32),
    )


@torch.library.custom_op("opsin::merge_backward", mutates_args=())
def merge_backward(
    grad: Tensor, size: Tensor | None, merged_size: Tensor, unmerged: Tensor, src: Tensor, dst: Tensor, tokens: int
) -> Tensor:
    """Compute the gradient of the tokens from that of the merged ones: (B, R, C) → (B, T, C). Dropped tokens get zeros."""
    batch, rows, channels = grad.shape
    grad_x = _fake_gradient(grad, size, merged_size, unmerged, src, dst, tokens)
    if batch == 0:
        return grad_x
    owner = torch.full((batch, tokens), -1, dtype=torch.int64, device=grad.device)  # (B, T), the row that each token went into
    owner.scatter_(1, unmerged, torch.arange(rows, device=grad.device).expand(batch, -1)).scatter_(1, src, dst)
    grad = grad if grad.stride(2) == 1 else grad.contiguous()
    size = None if size is None else size.contiguous()
    block = min(256, triton.next_power_of_2(channels))
    with torch.cuda.device_of(grad):
        _merge_backward[(batch, triton.cdiv(tokens, 16), triton.cdiv(channels, block))](
            grad,
            size,
            merged_size.contiguous(),
            owner,
            grad_x,
            grad.stride(0),
            grad.stride(1),
            tokens,
            rows,
            channels,
            SIZED=size is not None,
            ACCUMULATOR=_accumulator(grad),
            BLOCK_TOKENS=16,
            BLOCK_CHANNELS=block,
        )
    return grad_x


@merge_backward.register_fake
def _fake_gradient(
    grad: Tensor, size: Tensor | None, merged_size: Tensor, unmerged: Tensor, src: Tensor, dst: Tensor, tokens: int
) -> Tensor:
    return grad.new_empty(grad.shape[0], tokens, grad.shape[2])


def _accumulator(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype is torch.float64 else tl.float32


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, size, _, unmerged, src, dst, _ = inputs
    ctx.save_for_backward(size, output[1], unmerged, src, dst)
    ctx.tokens = x.shape[1]
    ctx.mark_non_differentiable(output[1], output[2])


def _backward(ctx: Any, grad: Tensor, _size: Tensor, _source: Tensor) -> tuple[Tensor | None, ...]:
    size, merged_size, unmerged, src, dst = ctx.saved_tensors
    return merge_backward(grad, size, merged_size, unmerged, src, dst, ctx.tokens), None, None, None, None, None, None


merge.register_autograd(_backward, setup_context=_keep_for_backward)


MIN_CAPABILITY = (8, 0)
"""Minimum compute capability: older GPUs do not have bfloat16, and have too little shared memory for the tiles."""


def check_triton(device: torch.device) -> None:
    """Run the kernel that compiles fastest, since it has no tiles to choose from. Raises RuntimeError or Triton's errors."""
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < MIN_CAPABILITY:
        raise RuntimeError(f"compute capability {capability[0]}.{capability[1]} is below {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}")
    with torch.inference_mode():
        first, size = torch.zeros(1, 1, dtype=torch.int64, device=device), torch.full((1, 1, 1), 2.0, device=device)
        gradient = merge_backward(torch.ones(1, 1, 16, device=device), None, size, first, first + 1, first, 2)
        if not torch.equal(gradient, torch.full_like(gradient, 0.5)):
            raise RuntimeError("a kernel does not compute what the reference does")
