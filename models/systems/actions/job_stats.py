"""Costs and counts of a job so far: seconds by stage, and counts for the worker's metrics."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

STAGES = ("decode", "pose", "track", "appearance", "actions")
COUNTS = ("people", "tracks", "windows", "frames", "decoded", "seconds")


@dataclass(frozen=True)
class JobStats:
    """Costs of a job. A stage that jobs share adds its share to each."""

    decode: float = 0.0
    """Seconds of waiting for frames; decoding itself runs beside the other stages."""
    pose: float = 0.0
    track: float = 0.0
    appearance: float = 0.0
    actions: float = 0.0
    tracks: int = 0
    """Tracks that began, those of people who were seen too seldom to be believed included."""
    windows: int = 0
    """Windows of tracks that LART read."""
    frames: int = 0
    """In which people were looked for."""

    def plus(self, **more: float) -> JobStats:
        return replace(self, **{name: getattr(self, name) + value for name, value in more.items()})

    @property
    def stages(self) -> Tensor:
        """Seconds (5,), in the order of STAGES."""
        return torch.tensor([getattr(self, name) for name in STAGES], dtype=torch.float64)

    def counts(self, people: int, decoded: int, seconds: float) -> Tensor:
        """(6,), in the order of COUNTS. people: of whom something is told. decoded: frames, those that no row shows included. seconds: of
        video."""
        return torch.tensor([people, self.tracks, self.windows, self.frames, decoded, seconds], dtype=torch.float64)
