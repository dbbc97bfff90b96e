"""Proportional attention (ToMe, section 3.2 of arXiv 2210.09461) in tiles, after FlashAttention-2 (arXiv 2307.08691).

Softmax is computed while keys stream past, so neither the matrix of weights nor the bias of log sizes is in memory. Numbers of queries and
keys are arguments, no multiple of anything: merging changes them in every block.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.autotune import autotune, batch_bucket, bucket
from kernels.triton.matching import dot

_MAX_HEAD_CHANNELS = 128
"""Maximum number of channels of a head: larger tiles do not fit the shared memory of a multiprocessor."""

_LOG2_E = 1.4426950408889634

_FORWARD = [
    triton.Config({"BLOCK_QUERIES": queries, "BLOCK_KEYS": keys}, num_warps=warps, num_stages=stages)
    for queries, keys, warps, stages in ((64, 64, 4, 2), (128, 64, 4, 3), (128, 64, 8, 3), (64, 32, 4, 3), (128, 128, 8, 2), (32, 32, 4, 2))
]
_BACKWARD = [
    triton.Config({"BLOCK_QUERIES": queries, "BLOCK_KEYS": keys}, num_warps=warps, num_stages=stages)
    for queries, keys, warps, stages in ((64, 64, 4, 2), (32, 64, 4, 2), (64, 128, 8, 2), (32, 32, 4, 2))
]
_INTERPRETED = triton.Config({"BLOCK_QUERIES": 32, "BLOCK_KEYS": 32})


@triton.jit
def _tile(base, index, limit, stride, channel, channels):
    """Load rows `index` of a matrix with contiguous channels, zeros beyond its `limit` rows: (N, D)."""
    at = base + index.to(tl.int64)[:, None] * stride + channel[None, :]
    return tl.load(at, mask=(index < limit)[:, None] & (channel < channels)[None, :], other=0.0)


@triton.jit
def _bias(size, sample, key, keys):
    """Load the log2 of the sizes of keys, -inf beyond the last key: (K,)."""
    return tl.log2(tl.load(size + sample * keys + key, mask=key < keys, other=0.0).to(tl.float32))


@triton.jit
def _place(rows, BLOCK: tl.constexpr):
    """Return the head of a sample, and the tile of its rows, that this program computes.

    Tiles of one head are neighbours, as they read the same keys. One dimension of the grid holds all, since the others end at 65,535.
    """
    tiles = tl.cdiv(rows, BLOCK)
    return (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles


@autotune(_FORWARD, key=["channels", "heads_bucket", "queries_bucket", "keys_bucket"], interpreted=_INTERPRETED)
@triton.jit(do_not_specialize=["queries", "keys"])
def _attend(
    q,
    k,
    v,
    size,
    out,
    log_sum,
    q_sample,
    q_head,
    q_row,
    k_sample,
    k_head,
    k_row,
    v_sample,
    v_head,
    v_row,
    heads,
    queries,
    keys,
    heads_bucket,
    queries_bucket,
    keys_bucket,
    channels,
    scale,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Compute attention and the log2 of each row's sum of weights.

    q (B, H, N, D), k and v (B, H, M, D), size (B, M) → out (B, N, H, D), log_sum (B, H, N).
    """
    sample_head, tile = _place(queries, BLOCK_QUERIES)
    sample, head = sample_head // heads, sample_head % heads
    query = tile * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    channel = tl.arange(0, BLOCK_CHANNELS)
    k += sample * k_sample + head * k_head
    v += sample * v_sample + head * v_head
    q_tile = _tile(q + sample * q_sample + head * q_head, query, queries, q_row, channel, channels)  # (Q, D)
    highest = tl.full((BLOCK_QUERIES,), float("-inf"), tl.float32)
    weight = tl.full((BLOCK_QUERIES,), 0.0, tl.float32)
    total = tl.full((BLOCK_QUERIES, BLOCK_CHANNELS), 0.0, tl.float32)
    nothing = tl.full((BLOCK_QUERIES, BLOCK_KEYS), 0.0, tl.float32)
    for start in range(0, keys, BLOCK_KEYS):
        key = start + tl.arange(0, BLOCK_KEYS)
        k_tile = _tile(k, key, keys, k_row, channel, channels)  # (K, D)
        logits = dot(q_tile, tl.trans(k_tile), nothing) * scale + _bias(size, sample, key, keys)[None, :]
        higher = tl.maximum(highest, tl.max(logits, axis=1))
        anchor = tl.where(higher == float("-inf"), 0.0, higher)  # a row that sees only keys of size 0 so far
        p = tl.exp2(logits - anchor[:, None])
        fade = tl.exp2(highest - anchor)
        weight = weight * fade + tl.sum(p, axis=1)
        v_tile = _tile(v, key, keys, v_row, channel, channels)  # (K, D)
        total = dot(p.to(v_tile.dtype), v_tile, total * fade[:, None])
        highest = higher
    at = out + ((sample * queries + query.to(tl.int64)) * heads + head)[:, None] * channels + channel[None, :]
    inside = query < queries
    tl.store(at, (total / weight[:, None]).to(out.dtype.element_ty), mask=inside[:, None] & (channel < channels)[None, :])
    tl.store(log_sum + (sample * heads + head) * queries + query, highest + tl.log2(weight), mask=inside)


@autotune(_BACKWARD, key=["channels", "heads_bucket", "queries_bucket", "keys_bucket"], interpreted=_INTERPRETED)
@triton.jit(do_not_specialize=["queries", "keys"])
def _attend_backward_keys(
    q,
    k,
    v,
    size,
    grad,
    log_sum,
    delta,
    grad_k,
    grad_v,
    heads,
    queries,
    keys,
    heads_bucket,
    queries_bucket,
    keys_bucket,
    channels,
    scale,
    scale_natural,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Compute gradients of keys and values: (B, H, M, D). A program owns a tile of keys, queries stream past. Inputs are contiguous."""
    sample_head, tile = _place(keys, BLOCK_KEYS)
    sample = sample_head // heads
    key = tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    k_tile = _tile(k + sample_head * keys * channels, key, keys, channels, channel, channels)  # (K, D)
    v_tile = _tile(v + sample_head * keys * channels, key, keys, channels, channel, channels)
    bias = _bias(size, sample, key, keys)
    k_total = tl.full((BLOCK_KEYS, BLOCK_CHANNELS), 0.0, tl.float32)
    v_total = tl.full((BLOCK_KEYS, BLOCK_CHANNELS), 0.0, tl.float32)
    nothing = tl.full((BLOCK_QUERIES, BLOCK_KEYS), 0.0, tl.float32)
    for start in range(0, queries, BLOCK_QUERIES):
        query = start + tl.arange(0, BLOCK_QUERIES)
        inside = query < queries
        q_tile = _tile(q + sample_head * queries * channels, query, queries, channels, channel, channels)  # (Q, D)
        g_tile = _tile(grad + sample_head * queries * channels, query, queries, channels, channel, channels)
        sums = tl.load(log_sum + sample_head * queries + query, mask=inside, other=float("inf"))
        dots = tl.load(delta + sample_head * queries + query, mask=inside, other=0.0)
        logits = dot(q_tile, tl.trans(k_tile), nothing) * scale + bias[None, :]
        p = tl.exp2(logits - sums[:, None])  # (Q, K), the weights as in the forward pass
        v_total = dot(tl.trans(p.to(g_tile.dtype)), g_tile, v_total)
        slope = p * (dot(g_tile, tl.trans(v_tile), nothing) - dots[:, None])
        k_total = dot(tl.trans(slope.to(q_tile.dtype)), q_tile, k_total)
    at = sample_head * keys * channels + key.to(tl.int64)[:, None] * channels + channel[None, :]
    mask = (key < keys)[:, None] & (channel < channels)[None, :]
    tl.store(grad_k + at, (k_total * scale_natural).to(grad_k.dtype.element_ty), mask=mask)
    tl.store(grad_v + at, v_total.to(grad_v.dtype.element_ty), mask=mask)


@autotune(_BACKWARD, key=["channels", "heads_bucket", "queries_bucket", "keys_bucket"], interpreted=_INTERPRETED)
@triton.jit(do_not_specialize=["queries", "keys"])
def _attend_backward_queries(
    q,
    k,
    v,
    size,
    grad,
    log_sum,
    delta,
    grad_q,
    heads,
    queries,
    keys,
    heads_bucket,
    queries_bucket,
    keys_bucket,
    channels,
    scale,
    scale_natural,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Compute the gradient of queries, (B, H, N, D). A program owns a tile of queries, keys stream past. Inputs are contiguous."""
    sample_head, tile = _place(queries, BLOCK_QUERIES)
    sample = sample_head // heads
    query = tile * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    inside = query < queries
    channel = tl.arange(0, BLOCK_CHANNELS)
    q_tile = _tile(q + sample_head * queries * channels, query, queries, channels, channel, channels)  # (Q, D)
    g_tile = _tile(grad + sample_head * queries * channels, query, queries, channels, channel, channels)
    sums = tl.load(log_sum + sample_head * queries + query, mask=inside, other=float("inf"))
    dots = tl.load(delta + sample_head * queries + query, mask=inside, other=0.0)
    total = tl.full((BLOCK_QUERIES, BLOCK_CHANNELS), 0.0, tl.float32)
    nothing = tl.full((BLOCK_QUERIES, BLOCK_KEYS), 0.0, tl.float32)
    for start in range(0, keys, BLOCK_KEYS):
        key = start + tl.arange(0, BLOCK_KEYS)
        k_tile = _tile(k + sample_head * keys * channels, key, keys, channels, channel, channels)  # (K, D)
        v_tile = _tile(v + sample_head * keys * channels, key, keys, channels, channel, channels)
        logits = dot(q_tile, tl.trans(k_tile), nothing) * scale + _bias(size, sample, key, keys)[None, :]
        p = tl.exp2(logits - sums[:, None])
        slope = p * (dot(g_tile, tl.trans(v_tile), nothing) - dots[:, None])
        total = dot(slope.to(k_tile.dtype), k_tile, total)
    at = grad_q + sample_head * queries * channels + query.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(at, (total * scale_natural).to(grad_q.dtype.element_ty), mask=inside[:, None] & (channel < channels)[None, :])


def has_tiles(q: Tensor) -> bool:
    """Return True if the kernels support the dtype and the number of channels of these queries."""
    return q.shape[-1] <= _MAX_HEAD_CHANNELS and q.dtype in (torch.float32, torch.float16, torch.bfloat16)


@torch.library.custom_op("opsin::size_biased_attention", mutates_args=())
def size_biased_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Attend with log sizes as bias, and return the log2 of each query's sum of weights, too.

    q (B, H, N, D), k and v (B, H, M, D), size (B, M, 1) of the keys → (B, H, N, D), (B, H, N) in float32. In memory the first result is
    (B, N, H, D), as the projection after it reads it. float32, float16 or bfloat16; see `has_tiles`.
    """
    batch, heads, queries, channels = q.shape
    keys = k.shape[2]
    out, log_sum = _fake_attention(q, k, v, size)
    if 0 in (batch, queries):
        return out, log_sum
    q, k, v = (part if part.stride(3) == 1 else part.contiguous() for part in (q, k, v))
    with torch.cuda.device_of(q):
        _attend[lambda meta: (triton.cdiv(queries, meta["BLOCK_QUERIES"]) * batch * heads,)](
            q,
            k,
            v,
            size.contiguous(),
            out,
            log_sum,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            heads,
            queries,
            keys,
            batch_bucket(batch * heads),
            bucket(queries),
            bucket(keys),
            channels,
            channels**-0.5 * _LOG2_E,
            BLOCK_CHANNELS=_block(channels),
        )
    return out, log_sum


@size_biased_attention.register_fake
def _fake_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, queries, channels = q.shape
    out = q.new_empty(batch, queries, heads, channels).transpose(1, 2)
    return out, q.new_empty(batch, heads, queries, dtype=torch.float32)


@torch.library.custom_op("opsin::size_biased_attention_backward", mutates_args=())
def size_biased_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, size: Tensor, out: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v from that of the output: (B, H, N, D) → (B, H, N, D), (B, H, M, D), (B, H, M, D)."""
    batch, heads, queries, channels = q.shape
    keys = k.shape[2]
    grads = _fake_gradients(grad, q, k, v, size, out, log_sum)
    if 0 in (batch, queries):
        return grads
    grad_q, grad_k, grad_v = grads
    delta = (grad.float() * out.float()).sum(dim=-1)  # (B, H, N), what the softmax takes off each slope
    q, k, v, grad, size = (part.contiguous() for part in (q, k, v, grad.to(q.dtype), size))
    scale = channels**-0.5
    shapes = (heads, queries, keys, batch_bucket(batch * heads), bucket(queries), bucket(keys), channels, scale * _LOG2_E, scale)
    inputs = (q, k, v, size, grad, log_sum, delta)
    with torch.cuda.device_of(q):
        _attend_backward_keys[lambda meta: (triton.cdiv(keys, meta["BLOCK_KEYS"]) * batch * heads,)](
            *inputs, grad_k, grad_v, *shapes, BLOCK_CHANNELS=_block(channels)
        )
        _attend_backward_queries[lambda meta: (triton.cdiv(queries, meta["BLOCK_QUERIES"]) * batch * heads,)](
            *inputs, grad_q, *shapes, BLOCK_CHANNELS=_block(channels)
        )
    return grads


@size_biased_attention_backward.register_fake
def _fake_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, size: Tensor, out: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _block(channels: int) -> int:
    return max(16, int(triton.next_power_of_2(channels)))


def _keep_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _log_sum: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, size, out, log_sum = ctx.saved_tensors
    return (*size_biased_attention_backward(grad, q, k, v, size, out, log_sum), None)


size_biased_attention.register_autograd(_backward, setup_context=_keep_for_backward)
