"""The views of clips as the fine-tuned classifier of MAE-ST sees them (section 8 of its specification: whole steps between views)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.bundle import BundleSpec
from models.clips.steps import ClipSteps, Seen
from models.mae_st.model import VideoMAE
from models.merge_schedule import MergeSchedule


def clip_steps(model: nn.Module, spec: BundleSpec, device: torch.device) -> ClipSteps:
    assert isinstance(model, VideoMAE)

    def see(clips: Tensor, merge: MergeSchedule) -> Seen:
        answer = model(clips, merge=merge)
        return Seen(answer.logits.softmax(dim=-1), answer.tokens_in, answer.tokens_out)

    return ClipSteps(model, spec, device, see, offset=True)
