"""Post-norm text transformers: BERT (arXiv 1810.04805) and RoBERTa, of which XLM-R is one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.block import Attention, Mlp


@dataclass(frozen=True)
class PostNormTextConfig:
    """Config of the text encoder. The defaults are BERT-base, uncased."""

    vocabulary: int = 30522
    positions: int = 512
    token_types: int = 2
    """Number of segment types; 0: none (RoBERTa)."""
    padding: int | None = None
    """Id of padding tokens if positions are counted over the other tokens, from the one after it (RoBERTa); None: positions are counted
    from 0 over all tokens (BERT)."""
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    norm_eps: float = 1e-12
    dropout: float = 0.1
    """Dropout rate of embeddings, attention weights and both branches of a block, in training."""

    @property
    def max_length(self) -> int:
        return self.positions - (0 if self.padding is None else self.padding + 1)


class PostNormBlock(nn.Module):
    def __init__(self, config: PostNormTextConfig) -> None:
        super().__init__()
        self.attn = Attention(config.width, config.heads)
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config.width, config.hidden)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = config.dropout

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """Apply attention and MLP to (B, N, C). visible: bool (B, 1, 1, N), which tokens are keys."""
        q, k, v = self.attn.project(x)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=self.dropout if self.training else 0.0)
        x = self.norm1(x + self._drop(self.attn.join_heads(attended)))
        y: Tensor = self.norm2(x + self._drop(self.mlp(x)))
        return y

    def _drop(self, branch: Tensor) -> Tensor:
        return F.dropout(branch, self.dropout, self.training)


class PostNormTextEncoder(nn.Module):
    def __init__(self, config: PostNormTextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embed = nn.Embedding(config.vocabulary, config.width)
        self.pos_embed = nn.Embedding(config.positions, config.width)
        self.type_embed = nn.Embedding(config.token_types, config.width) if config.token_types else None
        self.embed_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.blocks = nn.ModuleList(PostNormBlock(config) for _ in range(config.depth))
        self._initialise()

    def _initialise(self) -> None:
        """Initialise as BERT: standard deviation 0.02, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, visible: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Encode tokens (B, N), int64 → (B, N, C); outputs of tokens that are not visible are undefined.

        visible: (B, N) of 0 and 1, the tokens of the text; None: all but padding. types: (B, N), each token's segment; None: the first.
        Raises ValueError for texts that are too long.
        """
        if tokens.shape[1] > self.config.max_length:
            raise ValueError(f"tokens: texts of {tokens.shape[1]} word pieces where at most {self.config.max_length} are possible")
        if visible is None:
            visible = torch.ones_like(tokens) if self.config.padding is None else tokens != self.config.padding
        x = self.token_embed(tokens) + self.pos_embed(self.position_ids(tokens))
        if self.type_embed is not None:
            x = x + self.type_embed(torch.zeros_like(tokens) if types is None else types)
        x = F.dropout(self.embed_norm(x), self.config.dropout, self.training)
        keys = visible.bool()[:, None, None]  # (B, 1, 1, N)
        for block in self.blocks:
            x = block(x, keys)
        words: Tensor = x
        return words

    def position_ids(self, tokens: Tensor) -> Tensor:
        """Return rows of the position table, (B, N). RoBERTa's first token has the row after that of padding, and padding the row of its
        id."""
        padding = self.config.padding
        if padding is None:
            return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        present = (tokens != padding).long()
        return present.cumsum(dim=1) * present + padding
