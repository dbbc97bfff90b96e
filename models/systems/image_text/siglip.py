"""SigLIP (arXiv 2303.15343): images and texts in one space, trained with a sigmoid loss per pair.

An image's feature is pooled by attention with a trained query; the text tower is bidirectional, and a text's feature is that of its last
token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.masked_encoder import initialise_linears
from models.systems.image_text.dual_encoder import DualEncoder, ImageTowerConfig, PreNormTextEncoder, unit_vectors
from models.systems.vit.model import Pool, ViT, ViTConfig

INITIAL_SCALE, INITIAL_BIAS = math.log(10), -10.0
"""Initial logarithm of the factor of the cosines, and initial bias of the logits (section 3.2)."""


@dataclass(frozen=True)
class SigLIPConfig(ImageTowerConfig):
    """Config of SigLIP. The defaults are SigLIP's ViT-B/16."""

    tanh_gelu: bool = True
    cut_edge: bool = False
    text_width: int = 768
    text_depth: int = 12
    text_heads: int = 12
    text_hidden: int = 3072
    text_norm_eps: float = 1e-6
    text_tanh_gelu: bool = True
    vocabulary: int = 32000
    text_length: int = 64
    """Number of word pieces of every text, padding included: attention includes padding."""
    padding: int = 1
    joint_width: int = 768

    def __post_init__(self) -> None:
        if self.joint_width != self.width:
            raise ValueError(f"joint_width {self.joint_width} is not width {self.width}: images are not projected")

    @property
    def vision(self) -> ViTConfig:
        return self.vit_config(tanh_gelu=self.tanh_gelu, cut_edge=self.cut_edge, class_token=False, pool=Pool.ATTENTION)


PUBLISHED: Mapping[str, SigLIPConfig] = {
    "siglip_base16": SigLIPConfig(),
    "siglip_large16": SigLIPConfig(
        image_size=256, width=1024, depth=24, heads=16, text_width=1024, text_depth=24, text_heads=16, text_hidden=4096, joint_width=1024
    ),
    "siglip_so400m14": SigLIPConfig(
        image_size=384,
        patch_size=14,
        width=1152,
        depth=27,
        heads=16,
        mlp_ratio=4304 / 1152,
        cut_edge=True,
        text_width=1152,
        text_depth=27,
        text_heads=16,
        text_hidden=4304,
        joint_width=1152,
    ),
}


class SigLIP(DualEncoder):
    def __init__(self, config: SigLIPConfig) -> None:
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
            norm_eps=config.text_norm_eps,
            tanh_gelu=config.text_tanh_gelu,
            feature_position=-1,
        )
        self.text_projection = nn.Linear(config.text_width, config.joint_width)
        self.logit_scale = nn.Parameter(torch.tensor([INITIAL_SCALE]))
        self.logit_bias = nn.Parameter(torch.tensor([INITIAL_BIAS]))
        initialise_linears(self)
        for token in (self.text.token_embed.weight, self.text.pos_embed):
            nn.init.normal_(token, std=0.02)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Compute the loss, a scalar, of normalised images (B, 3, S, S) and captions (B, text_length), each image with each caption
        (algorithm 1)."""
        cosines = unit_vectors(self.encode_images(images)) @ unit_vectors(self.encode_texts(tokens)).T
        signs = 2 * torch.eye(len(cosines), device=cosines.device) - 1
        return -F.logsigmoid(signs * (self.scale() * cosines + self.logit_bias)).sum() / len(cosines)

    def project_images(self, features: Tensor) -> Tensor:
        """Return features (..., C) unchanged, since pooled features are in the joint space."""
        return features

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Encode texts (B, text_length), int64 → (B, joint_width), not normalised."""
        projected: Tensor = self.text_projection(self.text(tokens))
        return projected
