"""The views of clips as MViTv2, MViT and Rev-MViT see them. Their tokens do not merge: they are pooled by trained strides."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.bundle import BundleSpec
from models.merge_schedule import MergeSchedule
from models.systems.clips.steps import ClipSteps, Seen
from models.systems.mvit.model import MViT, MViTConfig
from models.systems.mvit.reversible import RevMViT


def clip_steps(model: nn.Module, spec: BundleSpec, device: torch.device) -> ClipSteps | None:
    """None for a model of images, and for one of boxes, which a pipeline asks."""
    assert isinstance(model, MViT | RevMViT)
    config = model.config
    if config.images or getattr(config, "boxes", None) is not None:
        return None

    def see(clips: Tensor, merge: MergeSchedule, trace: bool) -> Seen:
        answer = model(clips)
        return Seen(answer.scores, answer.tokens_in, answer.tokens_out)

    return ClipSteps(model, spec, device, see, offset=_has_offset(config))


def _has_offset(config: object) -> bool:
    """Whether whole steps lie between views: MViTv2 was tested so; MViT, whose channels grow in the MLP, and Rev-MViT were not."""
    return isinstance(config, MViTConfig) and config.expand_in_attention
