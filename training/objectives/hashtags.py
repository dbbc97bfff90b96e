"""Weakly supervised pre-training of MAWS (arXiv 2303.13496): classify images by their hashtags."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from models.systems.vit.model import ViT
from training.collectives import term_of_mean
from training.objectives.checks import require_model, require_tensor
from training.objectives.protocols import Batch, ObjectiveContext, ObjectiveSettings


class HashtagSettings(ObjectiveSettings):
    kind: Literal["hashtags"] = "hashtags"

    def build(self, model: nn.Module, context: ObjectiveContext) -> HashtagObjective:
        return HashtagObjective(require_model(self.kind, model, ViT))


class HashtagObjective(nn.Module):
    """Batch: normalised `pixels` (B, 3, S, S); `labels` (B, classes) of 0 and 1, the tags of each.

    Softmax cross-entropy to 1/K for each of K tags: the mean over the images that have any.
    """

    def __init__(self, model: ViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        labels = require_tensor(batch, "labels").float()
        logits = self.model(require_tensor(batch, "pixels")).logits.float()
        tags = labels.sum(dim=1)  # (B,)
        losses = -(labels * logits.log_softmax(dim=1)).sum(dim=1) / tags.clamp(min=1)
        images = (tags > 0).sum()
        loss = losses.sum() / images.clamp(min=1)
        hits = labels.gather(1, logits.detach().argmax(dim=1, keepdim=True)).sum() / images.clamp(min=1)
        return {"loss": term_of_mean(loss, images), "accuracy": term_of_mean(hits, images)}
