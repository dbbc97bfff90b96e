"""Work on a clip or a sound, for the worker's metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from models.systems.clips.frame_reader import InMemoryFrames, ViewFrameReader


def clip_stats(frames: ViewFrameReader | InMemoryFrames | None, video_s: float = 0.0, sound_s: float = 0.0) -> dict[str, Tensor]:
    """Return `clip_counts` float64 (4,): frames decoded, seconds of waiting for them, seconds of video and of sound."""
    decoded, waited = (0, 0.0) if frames is None else (frames.decoded, frames.waited_s)
    return {"clip_counts": torch.tensor([decoded, waited, video_s, sound_s], dtype=torch.float64)}
