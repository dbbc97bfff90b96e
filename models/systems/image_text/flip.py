"""FLIP (arXiv 2212.00794): images and captions in one space, trained with most patches masked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.masked_encoder import Masking, initialise_linears
from models.layers.patches import sincos_table
from models.merge_schedule import MergeSchedule
from models.systems.image_text.dual_encoder import (
    INITIAL_SCALE,
    ImageTowerConfig,
    PreNormTextEncoder,
    class_features,
    contrastive_loss,
    unit_vectors,
)
from models.systems.vit.model import Pool, ViT, ViTConfig

LENGTH_EPS = 1e-8
"""Epsilon added to the length when features are normalised."""

MAX_LOG_SCALE = math.log(100)


@dataclass(frozen=True)
class FLIPConfig(ImageTowerConfig):
    """Config of FLIP. The defaults are FLIP-B/16, whose weights were not released."""

    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    text_hidden: int = 2048
    vocabulary: int = 30523
    text_length: int = 32
    """Number of word pieces of every text, padding included: attention includes padding."""
    joint_width: int = 512
    mask_ratio: float = 0.5
    """Fraction of the patches that training masks."""
    fixed_temperature: float | None = None
    """Divisor of the logits; None if it is learned."""
    proportional_attention: bool = False

    @property
    def vision(self) -> ViTConfig:
        return self.vit_config(tanh_gelu=True, class_position=False, pool=Pool.NORM_MEAN_ALL)

    @property
    def visible(self) -> int:
        """Number of patches that training keeps; the product is truncated, not rounded."""
        return int((self.image_size // self.patch_size) ** 2 * (1 - self.mask_ratio))


PUBLISHED: Mapping[str, FLIPConfig] = {
    "flip_base16": FLIPConfig(),
    "flip_large16": FLIPConfig(width=1024, depth=24, heads=16, text_width=768, text_heads=12, text_hidden=3072, joint_width=768),
    "flip_huge14": FLIPConfig(
        patch_size=14,
        width=1280,
        depth=32,
        heads=16,
        text_width=1024,
        text_depth=24,
        text_heads=16,
        text_hidden=4096,
        joint_width=1024,
    ),
}


@dataclass(frozen=True)
class FLIPOutput:
    images: Tensor
    """(B, joint_width), unit vectors."""
    texts: Tensor
    loss: Tensor
    """Scalar, of both directions."""


class FLIP(nn.Module):
    def __init__(self, config: FLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = ViT(config.vision)
        self.text = PreNormTextEncoder(
            vocabulary=config.vocabulary,
            length=config.text_length,
            width=config.text_width,
            depth=config.text_depth,
            heads=config.text_heads,
            hidden=config.text_hidden,
            norm_eps=config.norm_eps,
            tanh_gelu=True,
            feature_position=0,
        )
        self.vision_projection = nn.Linear(config.vision.features, config.joint_width, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.joint_width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor([INITIAL_SCALE])) if config.fixed_temperature is None else None
        self._initialise()

    def _initialise(self) -> None:
        """Initialise as published: Xavier for linear layers, with q, k and v as one matrix; biases 0; tokens and learned positions with a
        standard deviation of 0.02. The position table of the patches is fixed."""
        initialise_linears(self)
        kernel, bias = (self.vision.patch_embed.get_parameter(f"proj.{name}") for name in ("weight", "bias"))
        nn.init.xavier_uniform_(kernel.view(kernel.shape[0], -1))  # as the linear layer that it is
        nn.init.zeros_(bias)
        for token in (self.vision.get_parameter("cls_token"), self.text.token_embed.weight, self.text.pos_embed):
            nn.init.normal_(token, std=0.02)
        side = self.config.image_size // self.config.patch_size
        self.vision.pos_embed = nn.Parameter(sincos_table(self.config.width, side), requires_grad=False)

    def forward(self, images: Tensor, tokens: Tensor, noise: Tensor | None = None) -> FLIPOutput:
        """Compute features and loss of normalised images (B, 3, S, S) and their captions (B, text_length).

        noise: (B, L), uniform: the patches of each image with the lowest noise are kept; None: all are.
        """
        features = self.encode_images(images, noise=noise), self.encode_texts(tokens)
        return FLIPOutput(*features, contrastive_loss(*features, self.scale()))

    def encode_images(self, images: Tensor, *, noise: Tensor | None = None, merge: MergeSchedule | None = None) -> Tensor:
        """Encode images: (B, 3, S, S) → (B, joint_width), unit vectors."""
        visible = None if noise is None else Masking.from_noise(noise, self.config.visible).ids_keep
        return unit_vectors(self.project_images(self.vision(images, merge=merge, visible=visible).features), LENGTH_EPS)

    def project_images(self, features: Tensor) -> Tensor:
        """Project features of the vision tower, or of each of its tokens: (..., C) → (..., joint_width), not normalised."""
        projected: Tensor = self.vision_projection(features)
        return projected

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Encode texts: (B, text_length) → (B, joint_width), unit vectors."""
        return unit_vectors(self.text_projection(self.text(tokens)), LENGTH_EPS)

    def scale(self) -> Tensor:
        """Return the factor of the cosines in the loss, (1,): the inverse of the temperature. Outside its bounds it gets no gradient."""
        if self.logit_scale is None:
            assert self.config.fixed_temperature is not None
            return torch.full((1,), 1 / self.config.fixed_temperature, device=self.vision.pos_embed.device)
        return self.logit_scale.clamp(0, MAX_LOG_SCALE).exp()

    def class_features(self, tokens: Tensor, classes: Tensor, count: int) -> Tensor:
        """Average the texts (T, text_length) of each class, (T,) → (count, joint_width); cosines with these features are the zero-shot
        logits."""
        return class_features(self.encode_texts(tokens), classes, count, LENGTH_EPS)
