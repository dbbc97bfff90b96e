"""The meaning of every op, in plain PyTorch: what other implementations are tested against, and what runs where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["mean", "sum", "amax"]


@dataclass(frozen=True)
class Matching:
    """Tokens that stay, and those into which the others merge. Indices are int64; output row i starts as input token `unmerged[:, i]`."""

    unmerged: Tensor
    """(B, T_out) input positions of the tokens that stay, in output order."""
    src: Tensor
    """(B, S) input positions of the tokens that are merged away."""
    dst: Tensor
    """(B, S) output row that each source goes to."""


def bipartite_match(metric: Tensor, r: int, protected: int) -> Matching:
    """Match r of the even positions, each with its most similar odd position. metric: (B, T, C); 0 <= r <= (T - protected) // 2."""
    batch, tokens, _ = metric.shape
    metric = _directions(metric)
    scores = _similarity(metric[:, ::2], metric[:, 1::2])  # (B, A, O): even against odd positions
    if protected >= 1:
        scores[:, 0, :] = -torch.inf  # the class token, even, is never a source
    if protected == 2:
        scores[:, :, 0] = -torch.inf  # the distillation token, odd, is never a destination
    odd = torch.arange(1, tokens, 2, device=metric.device).expand(batch, -1)
    order = scores.amax(dim=-1).argsort(dim=-1, descending=True, stable=True)  # (B, A), equal ones by position
    src, even = order[:, :r], order[:, r:]
    if protected:
        even = even.sort(dim=-1).values  # special tokens stay in front
    dst = _rows(scores, src).argmax(dim=-1) + even.shape[1]
    if protected == 2:  # the distillation token, which is never a destination, moves up behind the class token
        unmerged = torch.cat([even[:, :1] * 2, odd[:, :1], even[:, 1:] * 2, odd[:, 1:]], dim=1)
    else:
        unmerged = torch.cat([even * 2, odd], dim=1)
    return Matching(unmerged=unmerged, src=src * 2, dst=dst)


def kth_match(metric: Tensor, k: int) -> Matching:
    """Keep the last of every run of k tokens and match the others with one of these; drop a tail shorter than k. metric: (B, T, C)."""
    batch, tokens, _ = metric.shape
    runs = torch.arange(tokens // k * k, device=metric.device).view(-1, k)
    unmerged, src = runs[:, -1], runs[:, :-1].flatten()
    metric = _directions(metric)
    dst = _similarity(metric[:, src], metric[:, unmerged]).argmax(dim=-1)
    return Matching(unmerged=unmerged.expand(batch, -1), src=src.expand(batch, -1), dst=dst)


def random_match(metric: Tensor, r: int, noise: Tensor) -> Matching:
    """Match the r tokens of lowest noise with one of the others, which stay in order of their noise. metric: (B, T, C); noise: (B, T)."""
    order = noise.argsort(dim=-1)
    src, unmerged = order[:, :r], order[:, r:]
    metric = _directions(metric)
    dst = _similarity(_rows(metric, src), _rows(metric, unmerged)).argmax(dim=-1)
    return Matching(unmerged=unmerged, src=src, dst=dst)


def reduce(x: Tensor, matching: Matching, reduction: Reduction) -> Tensor:
    """Reduce rows regardless of sizes: (B, T, C) → (B, T_out, C)."""
    unmerged, moved = _rows(x, matching.unmerged), _rows(x, matching.src)
    if reduction == "amax":
        return unmerged.scatter_reduce(1, matching.dst.unsqueeze(-1).expand_as(moved), moved, "amax")
    total = _add_rows(unmerged, matching.dst, moved)
    if reduction == "sum":
        return total
    return total / _add_rows(torch.ones_like(unmerged[..., :1]), matching.dst, torch.ones_like(moved[..., :1]))


def merge(x: Tensor, size: Tensor | None, matching: Matching) -> tuple[Tensor, Tensor]:
    """Average tokens weighted by size, and add up sizes: (B, T, C), (B, T, 1) → (B, T_out, C), (B, T_out, 1)."""
    batch, tokens, width = x.shape
    rows = matching.unmerged.shape[1]
    unmerged, src, dst = _flat(matching.unmerged, tokens), _flat(matching.src, tokens), _flat(matching.dst, rows)
    x = x.reshape(-1, width)
    size = torch.ones(batch * tokens, 1, device=x.device) if size is None else size.reshape(-1, 1)
    moved_size = size.index_select(0, src)
    merged_size = size.index_select(0, unmerged).index_add_(0, dst, moved_size)
    # Every source pulls its row towards itself by its share of the sum. That is the weighted mean, it costs nothing for the many rows that
    # receive nothing, and these keep their values exactly in any precision.
    share = (moved_size / merged_size.index_select(0, dst)).to(x.dtype)
    merged = x.index_select(0, unmerged)
    pull = (x.index_select(0, src) - merged.index_select(0, dst)) * share
    return merged.index_add_(0, dst, pull).view(batch, rows, width), merged_size.view(batch, rows, 1)


def unmerge(y: Tensor, matching: Matching) -> Tensor:
    """Give every token the row that it went into: (B, T_out, C) → (B, T, C)."""
    batch, rows = matching.unmerged.shape
    positions = torch.cat([matching.unmerged, matching.src], dim=1)
    values = torch.cat([torch.arange(rows, device=y.device).expand(batch, -1), matching.dst], dim=1)
    return _rows(y, torch.empty_like(positions).scatter_(1, positions, values))


def size_biased_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, dropout: float) -> Tensor:
    """Attend with log sizes as bias: q (B, H, N, D), k and v (B, H, M, D), size (B, M, 1) of the keys → (B, H, N, D)."""
    bias = None if size is None else _bias(size, q)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def attention_in_products(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None) -> Tensor:
    """Attend as a sequence of products, for when fused attention is switched off: (B, H, N, D).

    `torch.nn.attention.sdpa_kernel` switches it off on CPUs, too. PyTorch's own products also search for queries without keys, which takes
    a quarter of their time; here such a query becomes NaN.
    """
    logits: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, N, M)
    if size is not None:
        logits += _bias(size, q)
    return logits.softmax(dim=-1) @ v


def _bias(size: Tensor, q: Tensor) -> Tensor:
    """Convert sizes to the bias of logits, in the format of the queries: (B, M, 1) → (B, 1, 1, M)."""
    return size.log().to(q.dtype).view(size.shape[0], 1, 1, size.shape[1])


def _directions(metric: Tensor) -> Tensor:
    """Scale rows to length 1, in float32 or wider whatever the model's precision: near ties decide which tokens merge."""
    metric = metric.to(torch.promote_types(metric.dtype, torch.float32))
    length: Tensor = metric.norm(dim=-1, keepdim=True)
    return metric / length


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    """Compute cosines, in a precision that autocast does not lower: (B, A, C), (B, O, C) → (B, A, O)."""
    with torch.autocast(a.device.type, enabled=False):
        similarity: Tensor = a @ b.mT
        return similarity


def _flat(index: Tensor, rows: int) -> Tensor:
    """Convert row indices inside each sample to row indices of the flattened batch: (B, S) → (B * S,)."""
    return (index + torch.arange(0, index.shape[0] * rows, rows, device=index.device).unsqueeze(1)).flatten()


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Copy whole rows, on a CPU many times faster than `gather` with an expanded index: (B, T, C), (B, S) → (B, S, C)."""
    batch, rows, width = x.shape
    return x.reshape(batch * rows, width).index_select(0, _flat(index, rows)).view(batch, -1, width)


def _add_rows(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Add `values` (B, S, C) to the rows `index` (B, S) of x (B, T, C), in place."""
    batch, rows, width = x.shape
    x.view(batch * rows, width).index_add_(0, _flat(index, rows), values.view(-1, width))
    return x
