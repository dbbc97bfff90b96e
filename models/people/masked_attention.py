"""Attention among tokens of which some are hidden, as in LART (arXiv 2304.01199) and PHALP's pose predictor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.block import Attention, Mlp, drop_branch


@dataclass(frozen=True)
class Visible:
    """Keys that each query sees. A query that would see none sees all alike: the published code sets hidden scores to -1000, and the
    softmax over nothing else is the mean of every token, hidden ones included."""

    keys: Tensor
    """(B, 1, N, N) of bool; (B, 1, 1, N) where all queries see the same."""
    sighted: Tensor
    """(B, 1, N, 1) or (B, 1, 1, 1) of bool: False for a query that would see none."""

    @classmethod
    def of(cls, masked: Tensor, valid: Tensor | None = None) -> Visible:
        """(B, N) of bool each. Masked tokens are no keys; tokens that are not valid are neither keys nor queries. None: all are valid."""
        keys = ~masked if valid is None else valid & ~masked
        sighted = keys.any(dim=1, keepdim=True)  # (B, 1)
        if valid is not None:
            sighted = sighted & valid  # (B, N)
        return cls((keys.unsqueeze(1) | ~sighted.unsqueeze(2)).unsqueeze(1), sighted[:, None, :, None])


class MaskedAttention(Attention):
    """Without biases on q, k and v. One head as wide as the tokens has no output projection."""

    def __init__(self, width: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__(width, heads, qkv_bias=False, head_dim=head_dim)
        self.dropout = dropout
        if heads == 1 and head_dim == width:
            self.proj = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor, visible: Visible | None) -> Tensor:  # type: ignore[override]
        """(B, N, C) → (B, N, C)."""
        q, k, v = self.project(x)
        dropout = self.dropout if self.training else 0.0
        if visible is None:
            return self.join(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout))
        q = q * visible.sighted  # all scores of a blind query are 0, and its weights equal
        return self.join(F.scaled_dot_product_attention(q, k, v, attn_mask=visible.keys, dropout_p=dropout))


class MaskedBlock(nn.Module):
    """Pre-norm, LayerNorms of epsilon 1e-5."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int, *, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.attn = MaskedAttention(width, heads, head_dim, dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = Mlp(width, hidden, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = drop_path

    def forward(self, x: Tensor, visible: Visible | None = None) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        x = x + self._drop(self.attn(self.norm1(x), visible))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        return drop_branch(self.dropout(branch), self.drop_path, self.training)


def hidden_at_random(listed: Tensor, ratio: float, noise: Tensor) -> Tensor:
    """The share `ratio`, rounded down, of the listed tokens (B, N) of bool with the lowest noise (B, N): (B, N) of bool."""
    count = (listed.sum(dim=1, keepdim=True).double() * ratio).floor()
    rank = torch.where(listed, noise, torch.inf).argsort(dim=1).argsort(dim=1)
    return listed & (rank < count)
