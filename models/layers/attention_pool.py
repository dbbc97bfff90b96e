"""Attention pooling: a trained query attends to tokens (section 3.2 of arXiv 2106.04560; the head of SigLIP, arXiv 2303.15343)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels import ops
from models.layers.block import Mlp
from models.layers.token_merging import Tokens


class AttentionPool(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, *, norm_eps: float, tanh_gelu: bool = False) -> None:
        """hidden: width of the MLP behind the attention."""
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden, tanh_gelu=tanh_gelu)

    def forward(self, tokens: Tokens) -> Tensor:
        """Pool tokens (B, N, C) → (B, C). A merged token counts as those that it stands for, as in a mean."""
        split = (self.heads, -1)
        q = self.q(self.query).unflatten(-1, split).transpose(1, 2).expand(len(tokens.x), -1, -1, -1)  # (B, H, 1, D)
        k, v = self.kv(tokens.x).unflatten(-1, (2, *split)).permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
        attended = self.proj(ops.size_biased_attention(q, k, v, tokens.size).transpose(1, 2).flatten(2))[:, 0]  # (B, C)
        pooled: Tensor = attended + self.mlp(self.norm(attended))
        return pooled
