"""Embedding of points as tokens of MCC (arXiv 2301.08247): queries one by one, seen points by window; and the decoder's
block, in which a query attends to a scene's cached keys and values and to itself."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import ops
from models.layers.block import KVCache, TransformerBlock, drop_branch
from models.layers.patches import sincos_table
from models.layers.token_merging import Tokens


class PointEmbed(nn.Module):
    """Linear embedding of points: (..., 3) → (..., C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Linear(3, width)

    def forward(self, points: Tensor) -> Tensor:
        return embed_points(points, self.pos_embed)


class WindowEmbed(nn.Module):
    """Embedding of seen points, one token per window: the class token of a small transformer over the window's points."""

    def __init__(self, width: int, *, side: int, window: int, depth: int, heads: int, hidden: int, qkv_bias: bool, norm_eps: float) -> None:
        """Create the embedding. side: windows along a side of the map; window: points along a side of a window."""
        super().__init__()
        self.side, self.window = side, window
        self.pos_embed = nn.Linear(3, width)
        self.two_d_pos_embed = nn.Parameter(sincos_table(width, window), requires_grad=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.invalid_xyz_token = nn.Parameter(torch.zeros(width))
        block_types = [TransformerBlock] * (depth - 1) + [ClassTokenBlock]
        self.blocks = nn.ModuleList(block_type(width, heads, hidden, qkv_bias=qkv_bias, norm_eps=norm_eps) for block_type in block_types)

    def forward(self, points: Tensor, valid: Tensor) -> Tensor:
        """Embed points (B, n, n, 3), bool (B, n, n) → (B, windows, C) in raster order.

        Windows without a valid point have the same token: it is computed once, as the first row. A compiled model computes each window,
        since their number is known only when the graph runs.
        """
        batch = points.shape[0]
        inside, valid = (
            self._split_windows(points),
            self._split_windows(valid.unsqueeze(-1)).squeeze(-1),
        )  # (B · windows, w², 3), (B · windows, w²)
        if torch.compiler.is_compiling():
            return self.pool(inside, valid).view(batch, self.side**2, -1)
        has_points = valid.any(dim=1)
        inside = torch.cat([torch.zeros_like(inside[:1]), inside[has_points]])  # (1 + seen, w², 3)
        valid = torch.cat([torch.zeros_like(valid[:1]), valid[has_points]])
        pooled = self.pool(inside, valid)  # (1 + seen, C)
        row = torch.where(has_points, has_points.cumsum(dim=0), 0)
        return pooled.index_select(0, row).view(batch, self.side**2, -1)

    def _split_windows(self, grid: Tensor) -> Tensor:
        """Split maps into windows: (B, n, n, C) → (B · windows, w², C)."""
        split = grid.reshape(-1, self.side, self.window, self.side, self.window, grid.shape[-1])
        return split.transpose(2, 3).reshape(-1, self.window**2, grid.shape[-1])

    def pool(self, points: Tensor, valid: Tensor) -> Tensor:
        """Compute the class token of each window: (W, w², 3), bool (W, w²) → (W, C)."""
        x = torch.where(valid.unsqueeze(-1), embed_points(points, self.pos_embed), self.invalid_xyz_token) + self.two_d_pos_embed[:, 1:]
        class_token = (self.cls_token + self.two_d_pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([class_token, x], dim=1)  # (W, 1 + w², C)
        tokens = Tokens(x)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.x[:, 0]


class ClassTokenBlock(TransformerBlock):
    """A block that computes the first token only."""

    def __init__(self, width: int, heads: int, hidden: int, *, qkv_bias: bool, norm_eps: float) -> None:
        super().__init__(width, heads, hidden, qkv_bias=qkv_bias, norm_eps=norm_eps)
        self.attn.packable = False

    def forward(self, tokens: Tokens) -> Tokens:  # type: ignore[override]
        """Compute the first token, (W, N, C) → (W, 1, C), without keys and values of the other tokens.

        A logit q · (K x) is (Kᵀ q) · x, and a mean of values V x is V of the mean of x: each head queries with a vector of C channels, and
        all attend to the same tokens. The keys' bias shifts the logits of a query by a constant, so it drops out; the values' is added
        once.
        """
        x = tokens.x
        heads, width = self.attn.heads, x.shape[-1]
        to_q, to_k, to_v = self.attn.qkv.weight.view(3, heads, -1, width)  # (H, D, C) each
        bias = self.attn.qkv.bias
        bias_q, _, bias_v = (0, 0, 0) if bias is None else bias.view(3, heads, -1)
        normed = self.norm1(x)
        q = torch.einsum("wc,hdc->whd", normed[:, 0], to_q) + bias_q
        q = torch.einsum("whd,hdc->whc", q, to_k)
        mean = F.scaled_dot_product_attention(q, normed, normed, scale=(width // heads) ** -0.5)  # (W, H, C)
        attended = torch.einsum("whc,hdc->whd", mean, to_v) + bias_v
        token: Tensor = x[:, 0] + self.attn.proj(attended.flatten(1))
        token = token + self.mlp(self.norm2(token))
        return replace(tokens, x=token.unsqueeze(1))


def embed_points(points: Tensor, linear: nn.Linear) -> Tensor:
    """Embed points: (..., 3) → (..., C) in the weights' dtype, but computed in float32: bfloat16 would round coordinates to coarse
    steps."""
    return linear_in_float32(linear.weight, linear.bias, points).to(linear.weight.dtype)


def contract(points: Tensor, far: float) -> Tensor:
    """Contract points farther than `far` from the origin to a distance of far · (2 - far / r), below twice that: (..., 3) → (..., 3)."""
    distance = points.norm(dim=-1, keepdim=True)
    is_far = (distance > far) & distance.isfinite()
    r = torch.where(is_far, distance, far)
    return torch.where(is_far, points * (far * (2 - far / r) / r), points)


def linear_in_float32(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """Apply a linear layer in the wider of both dtypes, at least float32, regardless of autocast: (..., C) → (..., D)."""
    device, wide = x.device.type, torch.promote_types(promote_to_float32(x).dtype, weight.dtype)
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():  # "meta" has none
        return F.linear(x.to(wide), weight.to(wide), bias.to(wide))


def promote_to_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


SELF_CHANNELS = 8
"""Number of channels that `append_self_slot` adds to a head: two are used, eight keep rows aligned for fast kernels."""


def append_self_slot(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Append a slot for the query itself to keys and values (B, H, N, D) of a scene → (B, H, N + 1, D + 8).

    Its key is 1 in two extra channels, in which a query carries the logit of its own key; its value is 1 in one, from which the query reads
    the weight of its own value.
    """
    width = k.shape[-1]
    keys, values = (F.pad(x, (0, SELF_CHANNELS, 0, 1)) for x in (k, v))
    slot = torch.zeros(2, keys.shape[-2], keys.shape[-1], dtype=k.dtype, device=k.device)
    slot[0, -1, width : width + 2] = 1
    slot[1, -1, width] = 1
    return keys + slot[0], values + slot[1]


def attend_to_scene_and_self(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend to a scene's tokens and the query itself: (B, H, Q, D) each, the scene from `append_self_slot` → (B, H, Q, D). Linear in Q."""
    width = q.shape[-1]
    logit = (promote_to_float32(q) * promote_to_float32(k)).sum(dim=-1, keepdim=True)
    coarse = logit.to(q.dtype)
    fine = (logit - coarse).to(q.dtype)  # the rounding error of half precision
    extended_q = torch.cat([q, coarse, fine, q.new_zeros(1).expand(*q.shape[:-1], SELF_CHANNELS - 2)], dim=-1)
    attended = F.scaled_dot_product_attention(extended_q, keys, values, scale=width**-0.5)  # (B, H, Q, D + 8)
    return attended[..., :width] + attended[..., width : width + 1] * v


class MCCDecoderBlock(TransformerBlock):
    """A block in which the scene's tokens attend to each other, and a query to them and itself."""

    def forward(  # type: ignore[override]
        self, x: Tensor, kv_cache: KVCache | None = None, keep: Tensor | None = None, *, passes_on: bool = True
    ) -> tuple[Tensor, KVCache]:
        """Return tokens (B, N, C) after the block, and the keys and values that queries attend to.

        kv_cache: of the scene of queries; None for the scene's own tokens. keep: (2, B) of 0 and 1, which samples keep the attention and
        the MLP branch; None: all. passes_on: False in the last layer of the scene, whose output tokens are not used.
        """
        q, k, v = self.attn.project(self.norm1(x))
        cache = KVCache(*append_self_slot(k, v)) if kv_cache is None else kv_cache
        if not passes_on:
            return x, cache
        attended = (
            ops.size_biased_attention(q, k, v) if kv_cache is None else attend_to_scene_and_self(q, k, v, kv_cache.keys, kv_cache.values)
        )
        keep_attention, keep_mlp = (None, None) if keep is None else keep
        x = x + drop_branch(self.attn.join_heads(attended), self.drop_path, False, keep_attention)
        return x + drop_branch(self.mlp(self.norm2(x)), self.drop_path, False, keep_mlp), cache
