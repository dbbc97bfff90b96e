"""Weakly supervised pre-training of MAWS (arXiv 2303.13496): classify images by their hashtags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from models.vit.model import ViT
from training.objectives.settings import Settings, expect, need
from training.reductions import term_of_mean


class HashtagSettings(Settings):
    kind: Literal["hashtags"] = "hashtags"

    def build(self, model: nn.Module) -> Hashtags:
        return Hashtags(expect(self.kind, model, ViT))


class Hashtags(nn.Module):
    """Batch: normalised `images` (B, 3, S, S); `labels` int64 (B, K), the tags of each, -1 where it has fewer.

    Softmax cross-entropy to 1/K for each of K tags, the mean over the images that have any.
    """

    def __init__(self, model: ViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        labels = need(batch, "labels")
        logits = self.model(need(batch, "images")).logits.float()
        tagged = labels >= 0
        count = tagged.sum(dim=1)  # (B,)
        likelihoods = logits.log_softmax(dim=1).gather(1, labels.clamp(min=0))  # (B, K)
        losses = -(likelihoods * tagged).sum(dim=1) / count.clamp(min=1)
        images = (count > 0).sum()
        loss = losses.sum() / images.clamp(min=1)
        hit = (labels == logits.detach().argmax(dim=1, keepdim=True)).any(dim=1).sum() / images.clamp(min=1)
        return {"loss": term_of_mean(loss, images), "accuracy": term_of_mean(torch.as_tensor(hit), images)}
