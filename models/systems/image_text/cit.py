"""CiT (arXiv 2301.02241): a pre-trained vision tower, and BERT trained to match its features.

`training.curation` selects the captions of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor, nn

from models.merge_schedule import MergeSchedule
from models.systems.image_text.dual_encoder import (
    INITIAL_SCALE,
    DualEncoder,
    TwoTowersConfig,
    class_features,
    contrastive_loss,
    unit_vectors,
)
from models.systems.image_text.text_encoder import PostNormTextEncoder
from models.systems.vit.model import ViT, ViTConfig


class VisionTower(StrEnum):
    """Origin of the vision tower, which determines its feature."""

    MOCO = "moco"
    """MoCo-v3 (arXiv 2104.02057): the output of its projector."""
    AUGREG = "augreg"
    """AugReg (arXiv 2106.10270): the class token."""
    SWAG = "swag"
    """SWAG (arXiv 2201.08371): the class token."""


@dataclass(frozen=True)
class CiTConfig(TwoTowersConfig):
    """Config of CiT. The defaults are the released models: MoCo-v3 ViT-B/16 and BERT-base."""

    tower: VisionTower = VisionTower.MOCO
    tower_classes: int = 0
    """Number of classes of the tower's own head, which is kept and not used (AugReg)."""
    projector_hidden: int = 4096
    projector_width: int = 256
    """MoCo-v3 only."""

    @property
    def vision(self) -> ViTConfig:
        return replace(super().vision, classes=self.tower_classes)


PUBLISHED: Mapping[str, CiTConfig] = {
    "cit_mocob16": CiTConfig(),
    "cit_augreg_b32": CiTConfig(tower=VisionTower.AUGREG, patch_size=32, tower_classes=21843),
    "cit_augreg_b16": CiTConfig(tower=VisionTower.AUGREG, tower_classes=21843),
    "cit_augreg_l16": CiTConfig(tower=VisionTower.AUGREG, width=1024, depth=24, heads=16, tower_classes=21843),
    "cit_swag_b16": CiTConfig(tower=VisionTower.SWAG),
    "cit_swag_l16": CiTConfig(tower=VisionTower.SWAG, width=1024, depth=24, heads=16),
    "cit_swag_h14": CiTConfig(tower=VisionTower.SWAG, patch_size=14, width=1280, depth=32, heads=16),
}
"""Published sizes. Weights of the first were released, trained on YFCC15M and on YFCC100M; for the others only training configurations."""


class CiT(DualEncoder):
    def __init__(self, config: CiTConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = ViT(config.vision)
        has_projector = config.tower is VisionTower.MOCO
        vision_width = config.vision.features
        self.head = build_projector(vision_width, config.projector_hidden, config.projector_width) if has_projector else None
        self.text = PostNormTextEncoder(config.text)
        self.pooler = nn.Linear(config.text_width, config.text_width)
        self.vision_projection = nn.Linear(config.projector_width if has_projector else vision_width, config.joint_width, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.joint_width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))

    def forward(
        self, images: Tensor, tokens: Tensor, visible: Tensor | None = None, types: Tensor | None = None, *, symmetric: bool = False
    ) -> Tensor:
        """Compute the loss, a scalar, of a whole batch of normalised images (B, 3, S, S) and their captions; texts as for
        `encode_text_features`.

        symmetric: include the loss of finding the image of each text. CiT's only finds the text of each image.
        """
        texts = self.encode_texts(tokens, visible, types)
        return contrastive_loss(unit_vectors(self.encode_images(images)), unit_vectors(texts), self.scale(), symmetric=symmetric)

    def project_images(self, features: Tensor) -> Tensor:
        """Project features of the ViT (B, C) → (B, joint_width), through MoCo-v3's projector if there is one; without it also those of
        tokens."""
        projected: Tensor = self.vision_projection(self._apply_projector(features))
        return projected

    def encode_vision(self, images: Tensor, *, merge: MergeSchedule | None = None) -> Tensor:
        """Encode images by the vision tower: (B, 3, S, S) → (B, C), before the projection."""
        return self._apply_projector(self.vision(images, merge=merge).features)

    def _apply_projector(self, features: Tensor) -> Tensor:
        if self.head is None:
            return features
        projected: Tensor = self.head(features)
        return projected

    def encode_texts(self, tokens: Tensor, visible: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Encode texts → (B, joint_width), not normalised. Arguments are those of `encode_text_features`."""
        projected: Tensor = self.text_projection(self.encode_text_features(tokens, visible, types))
        return projected

    def encode_text_features(self, tokens: Tensor, visible: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Encode texts by the text tower → (B, text_width), before the projection. Curation compares captions by these features.

        tokens: (B, N), int64, [CLS] first; visible: (B, N), 1 for tokens and 0 for padding, None without padding; types: (B, N), each
        token's segment, None: all of the first.
        """
        return torch.tanh(self.pooler(self.text(tokens, visible, types)[:, 0]))

    def class_features(self, tokens: Tensor, visible: Tensor, classes: Tensor, count: int) -> Tensor:
        """Average the texts of each class, (T,) → (count, joint_width); cosines with these features are the zero-shot logits."""
        return class_features(self.encode_texts(tokens, visible), classes, count)


def build_projector(width: int, hidden: int, width_out: int) -> nn.Sequential:
    """Build MoCo-v3's projector, section 4.1 of arXiv 2104.02057: three layers with batch norms, the last without scale and shift."""
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
