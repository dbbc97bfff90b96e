"""The views of clips as the fine-tuned classifier of MAE-ST sees them (section 8 of its specification: whole steps between views)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.bundle import BundleSpec
from models.layers.classifier_output import patch_token_map
from models.merge_schedule import MergeSchedule
from models.systems.clips.steps import ClipSteps, ViewOutput
from models.systems.mae_st.model import VideoMAE


def clip_steps(model: nn.Module, spec: BundleSpec, device: torch.device) -> ClipSteps:
    assert isinstance(model, VideoMAE)

    config = model.config

    def see(clips: Tensor, merge: MergeSchedule, trace: bool) -> ViewOutput:
        answer = model(clips, merge=merge, trace=trace)
        seen = ViewOutput(answer.logits.softmax(dim=-1), answer.tokens_in, answer.tokens_out)
        if not trace:
            return seen
        schedule = merge.expand(config.depth)
        return replace(seen, groups=patch_token_map(answer.logits, answer.owners, answer.tokens_in, schedule, config.special_tokens))

    return ClipSteps(model, spec, device, see, offset=True, grid=config.grid)
