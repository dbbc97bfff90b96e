"""CLIP (arXiv 2103.00020): images and texts in one space, by two pre-norm transformers.

The text tower is causal, and the token at the end of a text is its feature; an image's feature is its class token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.block import TransformerBlock
from models.layers.masked_encoder import initialise_linears
from models.systems.image_text.dual_encoder import INITIAL_SCALE, DualEncoder, ImageTowerConfig, contrastive_loss, unit_vectors
from models.systems.vit.model import ViT, ViTConfig


@dataclass(frozen=True)
class CLIPConfig(ImageTowerConfig):
    """Config of CLIP. The defaults are CLIP's ViT-B/32."""

    patch_size: int = 32
    norm_eps: float = 1e-5
    quick_gelu: bool = True
    tanh_gelu: bool = False
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    text_hidden: int = 2048
    text_norm_eps: float = 1e-5
    text_quick_gelu: bool = True
    text_tanh_gelu: bool = False
    vocabulary: int = 49408
    text_length: int = 77
    """Number of word pieces that the text tower has positions for, special ones included."""
    end_of_text: int = 49407
    """Id of the token whose first occurrence in a text gives its feature."""
    joint_width: int = 512

    @property
    def vision(self) -> ViTConfig:
        return self.vit_config(quick_gelu=self.quick_gelu, tanh_gelu=self.tanh_gelu, pre_norm=True)


PUBLISHED: Mapping[str, CLIPConfig] = {
    "clip_base32": CLIPConfig(),
    "clip_base16": CLIPConfig(patch_size=16),
    "clip_large14": CLIPConfig(
        patch_size=14, width=1024, depth=24, heads=16, text_width=768, text_heads=12, text_hidden=3072, joint_width=768
    ),
}


class CausalTextEncoder(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width = config.text_width
        self.end_of_text = config.end_of_text
        self.token_embed = nn.Embedding(config.vocabulary, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.text_length, width))
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width,
                config.text_heads,
                config.text_hidden,
                norm_eps=config.text_norm_eps,
                quick_gelu=config.text_quick_gelu,
                tanh_gelu=config.text_tanh_gelu,
            )
            for _ in range(config.text_depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.text_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode texts (B, N), int64, with the end of the text in each row → (B, text_width). Tokens after the end have no influence.

        Raises ValueError for texts that are too long.
        """
        max_length = self.pos_embed.shape[1]
        if tokens.shape[1] > max_length:
            raise ValueError(f"tokens: texts of {tokens.shape[1]} word pieces where at most {max_length} are possible")
        x = self.token_embed(tokens) + self.pos_embed[:, : tokens.shape[1]]
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            q, k, v = block.attn.project(block.norm1(x))
            x = x + block.attn.join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True))
            x = x + block.mlp(block.norm2(x))
        ends = (tokens == self.end_of_text).int().argmax(dim=1)  # the first one
        feature: Tensor = self.norm(x[torch.arange(len(x), device=x.device), ends])  # the other tokens are not used
        return feature


class CLIP(DualEncoder):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = ViT(config.vision)
        self.text = CausalTextEncoder(config)
        self.vision_projection = nn.Linear(config.vision.features, config.joint_width, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.joint_width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))
        initialise_linears(self)
        for token in (self.text.token_embed.weight, self.text.pos_embed):
            nn.init.normal_(token, std=0.02)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Compute the contrastive loss, a scalar, of normalised images (B, 3, S, S) and their captions (B, N)."""
        return contrastive_loss(unit_vectors(self.encode_images(images)), unit_vectors(self.encode_texts(tokens)), self.scale())

    def project_images(self, features: Tensor) -> Tensor:
        projected: Tensor = self.vision_projection(features)
        return projected

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Encode texts (B, N), int64 → (B, joint_width), not normalised."""
        projected: Tensor = self.text_projection(self.text(tokens))
        return projected
