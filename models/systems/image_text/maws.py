"""MAWS (arXiv 2303.13496): vision transformers trained as masked autoencoders, then on weak labels.

They are `models.systems.vit.model.ViT`; with the text tower XLM-R they match images with texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.systems.image_text.dual_encoder import INITIAL_SCALE, DualEncoder, TwoTowersConfig, class_features, unit_vectors
from models.systems.image_text.text_encoder import PostNormTextConfig, PostNormTextEncoder
from models.systems.vit.model import ViT, ViTConfig

_B16 = ViTConfig(classes=0)
_L16 = ViTConfig(classes=0, width=1024, depth=24, heads=16)
_H14 = ViTConfig(classes=0, patch_size=14, width=1280, depth=32, heads=16)
_2B14 = ViTConfig(classes=0, patch_size=14, width=2560, depth=24, heads=32)
_6B14 = ViTConfig(classes=0, patch_size=14, width=4096, depth=32, heads=32)

VISION: Mapping[str, ViTConfig] = {
    "vit_b16": _B16,
    "vit_l16": _L16,
    "vit_h14": _H14,
    "vit_2b14": _2B14,
    "vit_6.5b14": _6B14,
    "vit_b16_ft_in1k": replace(_B16, image_size=512, classes=1000),
    "vit_l16_ft_in1k": replace(_L16, image_size=512, classes=1000),
    "vit_h14_ft_in1k": replace(_H14, image_size=518, classes=1000),
    "vit_2b14_ft_in1k": replace(_2B14, image_size=518, classes=1000),
    "vit_6.5b14_ft_in1k": replace(_6B14, image_size=518, classes=1000),
}
"""Published name → config. The families mae, mae_in1k and mae_in21k have the sizes without a head too, with other weights."""

VISION_SIZES: Mapping[str, ViTConfig] = {f"maws_{name}": config for name, config in VISION.items()}


@dataclass(frozen=True)
class MAWSClipConfig(TwoTowersConfig):
    """Config of a pair. The defaults are ViT-B/16 with XLM-R base."""

    vocabulary: int = 250002
    positions: int = 514
    padding: int = 1
    text_norm_eps: float = 1e-5
    joint_width: int = 768

    @property
    def text(self) -> PostNormTextConfig:
        return replace(super().text, token_types=0, padding=self.padding)


_XLMR_LARGE = MAWSClipConfig(text_width=1024, text_depth=24, text_heads=16, text_hidden=4096, joint_width=1024)

CLIP: Mapping[str, MAWSClipConfig] = {
    "vit_b16_xlmr_b": MAWSClipConfig(),
    "vit_l16_xlmr_l": replace(_XLMR_LARGE, width=1024, depth=24, heads=16),
    "vit_h14_xlmr_l": replace(_XLMR_LARGE, patch_size=14, width=1280, depth=32, heads=16),
    "vit_2b14_xlmr_l": replace(_XLMR_LARGE, patch_size=14, width=2560, depth=24, heads=32, joint_width=2048),
}

CLIP_SIZES: Mapping[str, MAWSClipConfig] = {f"maws_{name}": config for name, config in CLIP.items()}


class MAWSClip(DualEncoder):
    def __init__(self, config: MAWSClipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = ViT(config.vision)
        self.text = PostNormTextEncoder(config.text)
        self.vision_projection = nn.Parameter(torch.empty(config.vision.features, config.joint_width))
        self.text_projection = nn.Parameter(torch.empty(config.text_width, config.joint_width))
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))
        for projection in (self.vision_projection, self.text_projection):
            nn.init.normal_(projection, std=projection.shape[0] ** -0.5)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Compute the logits (B, T) of normalised images (B, 3, S, S) and texts (T, N); their softmax over the texts matches images to
        texts."""
        return self.scale() * (unit_vectors(self.encode_images(images)) @ unit_vectors(self.encode_texts(tokens)).T)

    def project_images(self, features: Tensor) -> Tensor:
        return features @ self.vision_projection

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Encode texts (T, N), int64, with start and end of the text, then padding → (T, joint_width), not normalised."""
        features: Tensor = self.text(tokens)[:, 0]
        return features @ self.text_projection

    def class_features(self, tokens: Tensor, classes: Tensor, count: int) -> Tensor:
        """Average the texts (T, N) of each class, (T,) → (count, joint_width); cosines with these features are the zero-shot logits without
        scale."""
        return class_features(self.encode_texts(tokens), classes, count)
