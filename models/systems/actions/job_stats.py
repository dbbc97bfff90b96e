"""Seconds by stage and counts of a job so far, for the worker's metrics."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

STAGES = ("decode", "pose", "track", "appearance", "actions")
COUNTS = ("people", "tracks", "windows", "frames", "decoded", "seconds")


@dataclass(frozen=True)
class JobStats:
    """Costs of a job. The time of a stage that jobs share is divided among them."""

    decode: float = 0.0
    """Time in seconds spent waiting for frames, while the decoder runs in parallel with the other stages."""
    pose: float = 0.0
    track: float = 0.0
    appearance: float = 0.0
    actions: float = 0.0
    tracks: int = 0
    """Number of tracks that started, including those that were never confirmed."""
    windows: int = 0
    """Number of windows of tracks that LART classified."""
    frames: int = 0
    """Number of frames in which people were searched for."""

    def plus(self, **amounts: float) -> JobStats:
        return replace(self, **{name: getattr(self, name) + value for name, value in amounts.items()})

    @property
    def stages(self) -> Tensor:
        """Seconds (5,) in the order of STAGES."""
        return torch.tensor([getattr(self, name) for name in STAGES], dtype=torch.float64)

    def counts(self, people: int, decoded: int, seconds: float) -> Tensor:
        """Return the counts (6,) in the order of COUNTS. people: in the answer. decoded: frames, with those that no row shows. seconds: of
        video."""
        return torch.tensor([people, self.tracks, self.windows, self.frames, decoded, seconds], dtype=torch.float64)
