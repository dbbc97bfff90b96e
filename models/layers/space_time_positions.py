"""Learned positions of clips and images: one table, or one of places and one of times, which add up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int, int]
"""Times, rows and columns."""


class SpaceTimePositions(nn.Module):
    def __init__(self, width: int, grid: Grid, *, class_token: bool, separate: bool) -> None:
        """grid: patches of an input of the configured size. separate: a table of places and one of times."""
        super().__init__()
        times, rows, columns = grid
        self.grid, self.class_token, self.separate = grid, class_token, separate
        if separate:
            self.spatial = nn.Parameter(torch.zeros(1, rows * columns, width))
            self.temporal = nn.Parameter(torch.zeros(1, times, width))
            self.first = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        else:
            self.joint = nn.Parameter(torch.zeros(1, int(class_token) + times * rows * columns, width))

    def forward(self, grid: Grid | None = None) -> Tensor:
        """→ (1, special + t·h·w, C), time slowest, the class token's first; stretched trilinearly to a grid of another size."""
        if self.separate:
            table = (self.temporal.unsqueeze(2) + self.spatial.unsqueeze(1)).flatten(1, 2)
            front = table[:, :0] if self.first is None else self.first
        else:
            front, table = self.joint[:, : int(self.class_token)], self.joint[:, int(self.class_token) :]
        if grid is not None and grid != self.grid:
            volume = table.transpose(1, 2).reshape(1, -1, *self.grid)  # (1, C, t, h, w)
            table = F.interpolate(volume, size=grid, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)
        return torch.cat([front, table], dim=1)
