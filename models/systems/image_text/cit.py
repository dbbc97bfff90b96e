"""CiT (arXiv 2301.02241): a pre-trained vision tower, and BERT trained to match its features.

Which captions training looks at is decided by `training.curation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor, nn

from models.merge_schedule import MergeSchedule
from models.systems.image_text.dual_encoder import INITIAL_SCALE, TwoTowersConfig, class_features, contrastive_loss, unit
from models.systems.image_text.text_encoder import PostNormText
from models.systems.vit.model import ViT, ViTConfig


class Tower(StrEnum):
    """Origin of the vision tower, which decides what is taken from it."""

    MOCO = "moco"
    """MoCo-v3 (arXiv 2104.02057): the output of its projector."""
    AUGREG = "augreg"
    """AugReg (arXiv 2106.10270): the class token."""
    SWAG = "swag"
    """SWAG (arXiv 2201.08371): the class token."""


@dataclass(frozen=True)
class CiTConfig(TwoTowersConfig):
    """The defaults are the released models: MoCo-v3 ViT-B/16 and BERT-base."""

    tower: Tower = Tower.MOCO
    tower_classes: int = 0
    """Classes of the tower's own head, which is kept and not used (AugReg)."""
    projector_hidden: int = 4096
    projector_width: int = 256
    """MoCo-v3 only."""

    @property
    def vision(self) -> ViTConfig:
        return replace(super().vision, classes=self.tower_classes)


PUBLISHED: Mapping[str, CiTConfig] = {
    "cit_mocob16": CiTConfig(),
    "cit_augreg_b32": CiTConfig(tower=Tower.AUGREG, patch_size=32, tower_classes=21843),
    "cit_augreg_b16": CiTConfig(tower=Tower.AUGREG, tower_classes=21843),
    "cit_augreg_l16": CiTConfig(tower=Tower.AUGREG, width=1024, depth=24, heads=16, tower_classes=21843),
    "cit_swag_b16": CiTConfig(tower=Tower.SWAG),
    "cit_swag_l16": CiTConfig(tower=Tower.SWAG, width=1024, depth=24, heads=16),
    "cit_swag_h14": CiTConfig(tower=Tower.SWAG, patch_size=14, width=1280, depth=32, heads=16),
}
"""Weights of the first were released, trained on YFCC15M and on YFCC100M; of the others the training configurations."""


class CiT(nn.Module):
    def __init__(self, config: CiTConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = ViT(config.vision)
        projected = config.tower is Tower.MOCO
        seen = config.vision.features
        self.head = projector(seen, config.projector_hidden, config.projector_width) if projected else None
        self.text = PostNormText(config.text)
        self.pooler = nn.Linear(config.text_width, config.text_width)
        self.vision_projection = nn.Linear(config.projector_width if projected else seen, config.joint_width, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.joint_width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))

    def forward(
        self, images: Tensor, tokens: Tensor, visible: Tensor | None = None, types: Tensor | None = None, *, symmetric: bool = False
    ) -> Tensor:
        """Scalar: the loss of a whole batch of normalised images (B, 3, S, S) and their captions, as for `read`.

        symmetric: also of finding the image of each text. CiT only asks for the text of each image.
        """
        texts = self.encode_texts(tokens, visible, types)
        return contrastive_loss(unit(self.encode_images(images)), unit(texts), self.scale(), symmetric=symmetric)

    def encode_images(self, images: Tensor, *, merge: MergeSchedule | None = None) -> Tensor:
        """→ (B, joint_width), of any length."""
        return self.project_images(self.vision(images, merge=merge).features)

    def project_images(self, features: Tensor) -> Tensor:
        """Features of the ViT (B, C) → (B, joint_width), through MoCo-v3's projector if there is one; if not, also of each token."""
        projected: Tensor = self.vision_projection(self._through_head(features))
        return projected

    def look(self, images: Tensor, *, merge: MergeSchedule | None = None) -> Tensor:
        """Features of the vision tower, (B, C), before the projection."""
        return self._through_head(self.vision(images, merge=merge).features)

    def _through_head(self, features: Tensor) -> Tensor:
        if self.head is None:
            return features
        projected: Tensor = self.head(features)
        return projected

    def encode_texts(self, tokens: Tensor, visible: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """→ (B, joint_width), of any length. As for `read`."""
        projected: Tensor = self.text_projection(self.read(tokens, visible, types))
        return projected

    def read(self, tokens: Tensor, visible: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Features of the text tower, (B, text_width), before the projection. Curation compares captions by them.

        tokens: (B, N), int64, [CLS] first; visible: (B, N), 1 for tokens and 0 for padding, None where there is none; types: (B, N),
        each token's segment, None: all of the first.
        """
        return torch.tanh(self.pooler(self.text(tokens, visible, types)[:, 0]))

    def scale(self) -> Tensor:
        """Factor of the cosines in the loss; it has no bounds."""
        return self.logit_scale.exp()

    def class_features(self, tokens: Tensor, visible: Tensor, classes: Tensor, count: int) -> Tensor:
        """Texts, as for `encode_texts`, and the class of each, (T,) → (count, joint_width); cosines with them are the zero-shot logits."""
        return class_features(self.encode_texts(tokens, visible), classes, count)


def projector(width: int, hidden: int, width_out: int) -> nn.Sequential:
    """MoCo-v3's, section 4.1 of arXiv 2104.02057: three layers with batch norms, the last without scale and shift."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, width_out, bias=False),
        nn.BatchNorm1d(width_out, affine=False),
    )
