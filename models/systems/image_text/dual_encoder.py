"""Parts that dual encoders share (CLIP, arXiv 2103.00020): unit features, a text tower, the contrastive loss, zero-shot classes.

The models are `models.systems.image_text.flip`, `models.systems.image_text.cit`, `models.systems.image_text.maws` and
`models.systems.image_text.siglip`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.block import TransformerBlock
from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule
from models.systems.image_text.text_encoder import PostNormTextConfig
from models.systems.vit.model import Stem, ViT, ViTConfig

INITIAL_SCALE = math.log(1 / 0.07)
"""Initial logarithm of the factor by which cosines are multiplied before softmax."""


@dataclass(frozen=True)
class ImageTowerConfig:
    """Config of a ViT without a head; the defaults are ViT-B/16."""

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
        return self.vit_config()

    def vit_config(self, **changes: Any) -> ViTConfig:
        """Return the config of the image tower. changes: fields that no field here decides."""
        shared = {field.name: getattr(self, field.name) for field in fields(ImageTowerConfig)}
        return ViTConfig(**shared, classes=0, **changes)

    @property
    def patches(self) -> int:
        return self.vision.patches

    @property
    def special_tokens(self) -> int:
        return self.vision.special_tokens


class DualEncoder(nn.Module):
    """Base of models whose images and texts are projected into one space."""

    vision: ViT
    logit_scale: nn.Parameter

    def encode_images(self, images: Tensor, *, merge: MergeSchedule | None = None) -> Tensor:
        """Encode images: (B, 3, S, S) → (B, joint_width), not normalised."""
        return self.project_images(self.vision(images, merge=merge).features)

    def project_images(self, features: Tensor) -> Tensor:
        """Project features of the vision tower, or of each of its tokens: (..., C) → (..., joint_width)."""
        raise NotImplementedError

    def scale(self) -> Tensor:
        """Return the factor of the cosines, () or (1,)."""
        return self.logit_scale.exp()


class PreNormTextEncoder(nn.Module):
    """Pre-norm text encoder without any mask: attention includes padding. Its feature is that of one token."""

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
        feature_position: int,
    ) -> None:
        """Create the encoder. length: word pieces of every text, padding included. feature_position: index of the token that is the
        feature."""
        super().__init__()
        self.length = length
        self.feature_position = feature_position
        self.token_embed = nn.Embedding(vocabulary, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, length, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, hidden, norm_eps=norm_eps, tanh_gelu=tanh_gelu) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode texts (B, length), int64, padded → (B, width). Raises ValueError for another length."""
        if tokens.shape[1] != self.length:
            raise ValueError(f"tokens: texts of {tokens.shape[1]} word pieces where exactly {self.length} are needed, padding included")
        words = Tokens(self.token_embed(tokens) + self.pos_embed)
        for block in self.blocks:
            words = block(words)
        feature: Tensor = self.norm(words.x[:, self.feature_position])
        return feature


@dataclass(frozen=True)
class TwoTowersConfig(ImageTowerConfig):
    """Config of a ViT and a post-norm text transformer of BERT's kind, projected into one space, as CiT and MAWS have."""

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


def unit_vectors(x: Tensor, eps: float = 0.0) -> Tensor:
    """Normalise vectors (..., C) to length 1. eps: added to the length (FLIP)."""
    return x / (x.norm(dim=-1, keepdim=True) + eps) if eps else F.normalize(x, dim=-1, eps=1e-12)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, *, symmetric: bool = True) -> Tensor:
    """Compute the contrastive loss, a scalar: cross-entropy of finding the text of each image and the image of each text.

    images, texts: (B, C), unit vectors of the whole batch, a pair per row; scale: factor of their cosines. symmetric: False for the first
    direction only.
    """
    logits = scale * (images @ texts.T)  # (B, B)
    pairs = torch.arange(len(images), device=images.device)
    to_text = F.cross_entropy(logits, pairs)
    return (to_text + F.cross_entropy(logits.T, pairs)) / 2 if symmetric else to_text


def class_features(texts: Tensor, classes: Tensor, count: int, eps: float = 0.0) -> Tensor:
    """Average the texts of each class for zero-shot classification: (count, C), unit vectors.

    texts: (T, C), of any length, each normalised first; classes: (T,) int64, the class of each text. eps: as for `unit_vectors`. Raises
    ValueError for a class without texts.
    """
    total = torch.zeros(count, texts.shape[1], dtype=texts.dtype, device=texts.device).index_add_(0, classes, unit_vectors(texts, eps))
    counts = classes.bincount(minlength=count)
    if not bool(counts.all()):
        raise ValueError(f"class {int(counts.argmin())} has no text")
    return unit_vectors(total / counts.unsqueeze(1), eps)
