"""Decoder block of MCC (arXiv 2301.08247): attention of a query to a scene's cached keys and values and to itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import ops
from models.layers.block import TransformerBlock, drop_branch
from models.layers.cross_attention import KVCache
from models.systems.mcc.point_embed import promote_to_float32

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
