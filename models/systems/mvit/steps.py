"""Step-by-step classification of clips by MViTv2, MViT and Rev-MViT. Tokens do not merge: trained strides pool them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.bundle import BundleSpec
from models.bundle_schema import Preprocess
from models.layers.forward import classification_arrays, normalise
from models.merge_schedule import MergeSchedule
from models.systems.clips.steps import ClipSteps, ViewOutput
from models.systems.mvit.model import MViT, MViTConfig
from models.systems.mvit.reversible import RevMViT


def classify(model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
    """Classify pixels: uint8 (B, S, S, 3) → logits and token counts. The option `merge` has no effect, since pooling decides the counts."""
    output = model(normalise(arrays["pixels"], preprocess, next(model.parameters()).dtype))
    return classification_arrays(output.logits, output.tokens_in, output.tokens_out)


def clip_steps(model: nn.Module, spec: BundleSpec, device: torch.device) -> ClipSteps | None:
    """Return steps of a clip model; None for a model of images, and for one of boxes, which a pipeline uses."""
    assert isinstance(model, MViT | RevMViT)
    config = model.config
    if config.images or getattr(config, "boxes", None) is not None:
        return None

    def classify(clips: Tensor, merge: MergeSchedule, trace: bool) -> ViewOutput:
        output = model(clips)
        return ViewOutput(output.scores, output.tokens_in, output.tokens_out)

    # views of MViTv2 start whole steps apart, as it was tested; those of MViT, whose channels grow in the MLP, and of Rev-MViT do not
    offset = isinstance(config, MViTConfig) and config.expand_in_attention
    return ClipSteps(model, spec, device, classify, offset=offset)
