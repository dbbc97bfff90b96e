"""Steps of the fine-tuned classifier of MAE-ST, one view of a clip each (section 8 of its specification: whole steps between views)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.bundle import BundleSpec
from models.layers.forward import ClassifierOutput, patch_token_map
from models.merge_schedule import MergeSchedule
from models.systems.clips.steps import ClipSteps, ViewOutput
from models.systems.mae_st.model import VideoMAE


def clip_steps(model: nn.Module, spec: BundleSpec, device: torch.device) -> ClipSteps:
    assert isinstance(model, VideoMAE)
    config = model.config

    def forward(clips: Tensor, merge: MergeSchedule, trace: bool) -> ViewOutput:
        output: ClassifierOutput = model(clips, merge=merge, trace=trace)
        view = ViewOutput(output.logits.softmax(dim=-1), output.tokens_in, output.tokens_out)
        if not trace:
            return view
        schedule, special = merge.expand(config.depth), config.special_tokens
        return replace(view, groups=patch_token_map(output.logits, output.token_owners, output.tokens_in, schedule, special))

    return ClipSteps(model, spec, device, forward, offset=True, grid=config.grid)
