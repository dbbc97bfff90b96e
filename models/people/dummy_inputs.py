"""Forward passes on random tracks and crops of people."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.people.track_batch import TrackBatch
from models.registry import ForwardCall, InputMaker


def tracks(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    """Make a batch with one person per row, detected in every frame."""

    def feature(size: Any) -> Tensor | None:
        return None if size is None else make.normal(config.frames, 1, size.values)

    pose = make.normal(config.frames, 1, config.pose.values)
    detected = torch.ones(*pose.shape[:3], 1, device=pose.device)
    random = TrackBatch(pose, detected, feature(getattr(config, "joints", None)), feature(getattr(config, "appearance", None)))
    return lambda: model(random)


def masked_crops(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    crops = make.normal(4, config.size, config.size)
    return lambda: model(crops)
