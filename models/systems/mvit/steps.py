"""Step-by-step classification of clips by MViTv2, MViT and Rev-MViT. Tokens do not merge: trained strides pool them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.bundle import BundleSpec
from models.merge_schedule import MergeSchedule
from models.systems.clips.steps import ClipSteps, ViewOutput
from models.systems.mvit.model import MViT, MViTConfig
from models.systems.mvit.reversible import RevMViT


def clip_steps(model: nn.Module, spec: BundleSpec, device: torch.device) -> ClipSteps | None:
    """Return steps of a clip model; None for a model of images, and for one of boxes, which a pipeline uses."""
    assert isinstance(model, MViT | RevMViT)
    config = model.config
    if config.images or getattr(config, "boxes", None) is not None:
        return None

    def classify(clips: Tensor, merge: MergeSchedule, trace: bool) -> ViewOutput:
        output = model(clips)
        return ViewOutput(output.scores, output.tokens_in, output.tokens_out)

    return ClipSteps(model, spec, device, classify, offset=_has_offset(config))


def _has_offset(config: object) -> bool:
    """Return True if views start whole steps apart: MViTv2 was tested so; MViT, whose channels grow in the MLP, and Rev-MViT were not."""
    return isinstance(config, MViTConfig) and config.expand_in_attention
