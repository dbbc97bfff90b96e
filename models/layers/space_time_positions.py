"""Learned positions of clips: one table, or one of places and one of times, which add up."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SpaceTimePositions(nn.Module):
    def __init__(self, width: int, grid: tuple[int, int], *, class_token: bool, separate: bool) -> None:
        """grid: patches in time and in one picture."""
        super().__init__()
        times, places = grid
        self.separate = separate
        if separate:
            self.spatial = nn.Parameter(torch.zeros(1, places, width))
            self.temporal = nn.Parameter(torch.zeros(1, times, width))
            self.first = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        else:
            self.joint = nn.Parameter(torch.zeros(1, int(class_token) + times * places, width))

    def forward(self) -> Tensor:
        """→ (1, special + t·h·w, C), time slowest, the class token's first."""
        if not self.separate:
            return self.joint
        table = (self.temporal.unsqueeze(2) + self.spatial.unsqueeze(1)).flatten(1, 2)
        return table if self.first is None else torch.cat([self.first, table], dim=1)
