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
    """Tokens that stay, and those into which the others merge. All indices are int64; output row i starts as input token `kept[:, i]`."""

    kept: Tensor
    """(B, T_out) input positions of the tokens that stay, in output order."""
    sources: Tensor
    """(B, S) input positions of the tokens that are merged away."""
    into: Tensor
    """(B, S) output row that each source goes to."""


def bipartite_match(metric: Tensor, r: int, protected: int) -> Matching:
    """(B, T, C), 0 <= r <= (T - protected) // 2 → r sources among the even positions, each into its most similar odd position."""
    batch, tokens, _ = metric.shape
    metric = _directions(metric)
    scores = _similarity(metric[:, ::2], metric[:, 1::2])  # (B, A, O): even against odd positions
    if protected >= 1:
        scores[:, 0, :] = -torch.inf  # the class token, even, is never a source
    if protected == 2:
        scores[:, :, 0] = -torch.inf  # the distillation token, odd, is never a destination
    odd = torch.arange(1, tokens, 2, device=metric.device).expand(batch, -1)
    order = scores.amax(dim=-1).argsort(dim=-1, descending=True, stable=True)  # (B, A), equal ones by position
    sources, even = order[:, :r], order[:, r:]
    if protected:
        even = even.sort(dim=-1).values  # special tokens stay in front
    into = _rows(scores, sources).argmax(dim=-1) + even.shape[1]
    if protected == 2:  # the distillation token, which is never a destination, moves up behind the class token
        kept = torch.cat([even[:, :1] * 2, odd[:, :1], even[:, 1:] * 2, odd[:, 1:]], dim=1)
    else:
        kept = torch.cat([even * 2, odd], dim=1)
    return Matching(kept=kept, sources=sources * 2, into=into)


def kth_match(metric: Tensor, k: int) -> Matching:
    """(B, T, C) → of every run of k tokens the last one stays; a tail shorter than k is dropped."""
    batch, tokens, _ = metric.shape
    runs = torch.arange(tokens // k * k, device=metric.device).view(-1, k)
    kept, sources = runs[:, -1], runs[:, :-1].flatten()
    metric = _directions(metric)
    into = _similarity(metric[:, sources], metric[:, kept]).argmax(dim=-1)
    return Matching(kept=kept.expand(batch, -1), sources=sources.expand(batch, -1), into=into)


def random_match(metric: Tensor, r: int, noise: Tensor) -> Matching:
    """(B, T, C), noise (B, T) → the r tokens of lowest noise are sources; the others stay, in order of their noise."""
    order = noise.argsort(dim=-1)
    sources, kept = order[:, :r], order[:, r:]
    metric = _directions(metric)
    into = _similarity(_rows(metric, sources), _rows(metric, kept)).argmax(dim=-1)
    return Matching(kept=kept, sources=sources, into=into)


def reduce(x: Tensor, matching: Matching, how: Reduction) -> Tensor:
    """(B, T, C) → (B, T_out, C)."""
    kept, moved = _rows(x, matching.kept), _rows(x, matching.sources)
    if how == "amax":
        return kept.scatter_reduce(1, matching.into.unsqueeze(-1).expand_as(moved), moved, "amax")
    total = _add_rows(kept, matching.into, moved)
    if how == "sum":
        return total
    return total / _add_rows(torch.ones_like(kept[..., :1]), matching.into, torch.ones_like(moved[..., :1]))


def merge(x: Tensor, size: Tensor | None, matching: Matching) -> tuple[Tensor, Tensor]:
    """(B, T, C), (B, T, 1) → (B, T_out, C), (B, T_out, 1)."""
    batch, tokens, width = x.shape
    rows = matching.kept.shape[1]
    kept, sources, into = _flat(matching.kept, tokens), _flat(matching.sources, tokens), _flat(matching.into, rows)
    x = x.reshape(-1, width)
    size = torch.ones(batch * tokens, 1, device=x.device) if size is None else size.reshape(-1, 1)
    moved_size = size.index_select(0, sources)
    merged_size = size.index_select(0, kept).index_add_(0, into, moved_size)
    # Every source pulls its row towards itself by its share of the sum. That is the weighted mean, it costs nothing for the many rows that
    # receive nothing, and these keep their values exactly in any precision.
    share = (moved_size / merged_size.index_select(0, into)).to(x.dtype)
    merged = x.index_select(0, kept)
    pull = (x.index_select(0, sources) - merged.index_select(0, into)) * share
    return merged.index_add_(0, into, pull).view(batch, rows, width), merged_size.view(batch, rows, 1)


def unmerge(y: Tensor, matching: Matching) -> Tensor:
    """(B, T_out, C) → (B, T, C): every token gets the row that it went into."""
    batch, rows = matching.kept.shape
    positions = torch.cat([matching.kept, matching.sources], dim=1)
    values = torch.cat([torch.arange(rows, device=y.device).expand(batch, -1), matching.into], dim=1)
    return _rows(y, torch.empty_like(positions).scatter_(1, positions, values))


def size_biased_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, dropout: float) -> Tensor:
    """(B, H, N, D) each, size (B, M, 1) of the keys → (B, H, N, D)."""
    bias = None if size is None else _bias(size, q)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def attention_in_products(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None) -> Tensor:
    """The same in one product after another, where fused attention is switched off (`torch.nn.attention.sdpa_kernel`, whose setting counts
    for CPUs, too). PyTorch's own products also look for queries that see no key, a quarter of their time: here such a query is NaN."""
    logits: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, N, M)
    if size is not None:
        logits += _bias(size, q)
    return logits.softmax(dim=-1) @ v


def _bias(size: Tensor, q: Tensor) -> Tensor:
    """(B, M, 1) → (B, 1, 1, M) in the format of the queries."""
    return size.log().to(q.dtype).view(size.shape[0], 1, 1, size.shape[1])


def _directions(metric: Tensor) -> Tensor:
    """Rows of length 1, in float32 or wider whatever the model's precision: near ties decide which tokens merge."""
    metric = metric.to(torch.promote_types(metric.dtype, torch.float32))
    length: Tensor = metric.norm(dim=-1, keepdim=True)
    return metric / length


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    """Directions (B, A, C), (B, O, C) → cosines (B, A, O), not to be lowered by autocast."""
    with torch.autocast(a.device.type, enabled=False):
        similarity: Tensor = a @ b.mT
        return similarity


def _flat(index: Tensor, rows: int) -> Tensor:
    """(B, S) row indices inside each sample → (B * S,) row indices of the flattened batch."""
    return (index + torch.arange(0, index.shape[0] * rows, rows, device=index.device).unsqueeze(1)).flatten()


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """(B, T, C), (B, S) → (B, S, C). Whole rows are copied: on a CPU many times faster than `gather` with an expanded index."""
    batch, rows, width = x.shape
    return x.reshape(batch * rows, width).index_select(0, _flat(index, rows)).view(batch, -1, width)


def _add_rows(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Add `values` (B, S, C) to the rows `index` (B, S) of x (B, T, C), in place: give it a tensor of your own."""
    batch, rows, width = x.shape
    x.view(batch * rows, width).index_add_(0, _flat(index, rows), values.view(-1, width))
    return x
