"""Parts that models of image-text pairs share (CLIP, arXiv 2103.00020): unit features, a text tower, the contrastive loss, zero-shot
classes. The models are `models.systems.image_text.flip`, `models.systems.image_text.cit`, `models.systems.image_text.maws` and
`models.systems.image_text.siglip`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.block import TransformerBlock
from models.layers.token_merging import Tokens
from models.systems.image_text.text_encoder import PostNormTextConfig
from models.systems.vit.model import Stem, ViTConfig

INITIAL_SCALE = math.log(1 / 0.07)
"""Initial logarithm of the factor by which cosines are multiplied before softmax."""


@dataclass(frozen=True)
class ImageTowerConfig:
    """A ViT without a head; the defaults are ViT-B/16."""

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    proportional_attention: bool = True
    reversible: bool = False
    """Use the trunk of a Rev-ViT: its features have twice as many channels."""
    stem: Stem = Stem.PATCHES

    @property
    def vision(self) -> ViTConfig:
        return ViTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            classes=0,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            norm_eps=self.norm_eps,
            proportional_attention=self.proportional_attention,
            reversible=self.reversible,
            stem=self.stem,
        )

    @property
    def patches(self) -> int:
        return self.vision.patches

    @property
    def special_tokens(self) -> int:
        return self.vision.special_tokens


class PreNormText(nn.Module):
    """A text tower with the norm before each branch, without any mask: padding is read like words. Its feature is one token's."""

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        norm_eps: float,
        tanh_gelu: bool,
        looked_at: int,
    ) -> None:
        """length: word pieces of every text, padding included. looked_at: place of the token whose feature counts."""
        super().__init__()
        self.length = length
        self.looked_at = looked_at
        self.token_embed = nn.Embedding(vocabulary, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, length, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, hidden, norm_eps=norm_eps, tanh_gelu=tanh_gelu) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, length), int64, filled up with padding → (B, width). Raises ValueError for another length."""
        if tokens.shape[1] != self.length:
            raise ValueError(f"tokens: texts of {tokens.shape[1]} word pieces where exactly {self.length} are needed, padding included")
        words = Tokens(self.token_embed(tokens) + self.pos_embed)
        for block in self.blocks:
            words = block(words)
        feature: Tensor = self.norm(words.x[:, self.looked_at])
        return feature


@dataclass(frozen=True)
class TwoTowersConfig(ImageTowerConfig):
    """A ViT and a post-norm text transformer of BERT's kind, projected into one space: what CiT and MAWS have in common."""

    vocabulary: int = 30522
    positions: int = 512
    text_width: int = 768
    text_depth: int = 12
    text_heads: int = 12
    text_hidden: int = 3072
    text_norm_eps: float = 1e-12
    joint_width: int = 512

    @property
    def text(self) -> PostNormTextConfig:
        return PostNormTextConfig(
            vocabulary=self.vocabulary,
            positions=self.positions,
            width=self.text_width,
            depth=self.text_depth,
            heads=self.text_heads,
            hidden=self.text_hidden,
            norm_eps=self.text_norm_eps,
        )


def unit(x: Tensor, added: float = 0.0) -> Tensor:
    """(..., C) divided by its length. added: to the length (FLIP)."""
    return x / (x.norm(dim=-1, keepdim=True) + added) if added else F.normalize(x, dim=-1, eps=1e-12)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, *, symmetric: bool = True) -> Tensor:
    """Scalar: cross-entropy of finding the text of each image among all, and the image of each text; only the former if not symmetric.

    images, texts: (B, C), unit vectors of the whole batch, row by row a pair; scale: what their cosines are multiplied by.
    """
    logits = scale * (images @ texts.T)  # (B, B)
    pairs = torch.arange(len(images), device=images.device)
    to_text = F.cross_entropy(logits, pairs)
    return (to_text + F.cross_entropy(logits.T, pairs)) / 2 if symmetric else to_text


def class_features(texts: Tensor, classes: Tensor, count: int, added: float = 0.0) -> Tensor:
    """Class features for zero-shot classification, (count, C): the mean of each class's texts, as a unit vector.

    texts: (T, C), of any length, each made a unit vector first; classes: (T,) int64, whose texts they are. added: as for `unit`.
    """
    total = torch.zeros(count, texts.shape[1], dtype=texts.dtype, device=texts.device).index_add_(0, classes, unit(texts, added))
    members = classes.bincount(minlength=count)
    if not bool(members.all()):
        raise ValueError(f"class {int(members.argmin())} has no text")
    return unit(total / members.unsqueeze(1), added)
