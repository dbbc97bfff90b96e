"""Position embeddings: fixed sine-cosine tables, resizing of tables, and learned positions in time and space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int, int]
"""Times, rows and columns."""


def sincos_table(width: int, rows: int, columns: int | None = None) -> Tensor:
    """Return the sine-cosine table float32 (1, 1 + rows · columns, width): zeros for the class token, then the grid in raster order.

    columns: None for as many as rows. The first half of the channels encodes the column, the second the row; each half is a `sincos_line`.
    Section A.1 of MAE (arXiv 2111.06377) calls it "the sine-cosine version". Channels beyond a multiple of 4 are 0: models of any width can
    be built, since most read their tables from a file.
    """
    columns = rows if columns is None else columns
    half = width // 4 * 2
    column = sincos_line(half, columns).expand(rows, -1, -1)
    row = sincos_line(half, rows).unsqueeze(1).expand(-1, columns, -1)
    grid = torch.cat([column, row], dim=2).reshape(1, rows * columns, 2 * half)
    return F.pad(grid, (0, width - 2 * half, 1, 0)).float()


def sincos_line(width: int, length: int) -> Tensor:
    """Return sines, then cosines, of position · 10000^(-k / (width / 2)), for an even width: float64 (length, width)."""
    # on the CPU also for models on the meta device: there its power would import torch's compiler, a second of work
    frequencies = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64, device="cpu") / (width // 2))
    angles = torch.arange(length, dtype=torch.float64, device="cpu").unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def space_time_table(width: int, times: int, rows: int, columns: int) -> Tensor:
    """Return a `sincos_line` in time plus a `sincos_table` in space: float32 (1, 1 + times · rows · columns, width), time slowest."""
    space = sincos_table(width, rows, columns)
    time = sincos_line(width, times).float().unsqueeze(1)
    return torch.cat([space[:, :1], (time + space[:, 1:]).reshape(1, times * rows * columns, width)], dim=1)


def tiled_table(width: int, times: int, rows: int, columns: int) -> Tensor:
    """Return a `sincos_table` that is the same at all times (MAViL): float32 (1, 1 + times · rows · columns, width)."""
    return repeat_in_time(sincos_table(width, rows, columns), times)


def repeat_in_time(table: Tensor, times: int) -> Tensor:
    """Repeat a table (1, 1 + L, C) in time → (1, 1 + times · L, C), the class token's row first."""
    return torch.cat([table[:, :1], table[:, 1:].repeat(1, times, 1)], dim=1)


def resize_table(table: Tensor, patches: int, *, special: int, align_corners: bool = False) -> Tensor:
    """Resize a square grid bicubically, without antialiasing: (1, special + old², C) → (1, special + patches, C), special tokens unchanged.

    MAE, DeiT and timm resize with `align_corners=False`, SWAG with True.
    """
    if table.shape[1] - special == patches:
        return table
    old, new = round((table.shape[1] - special) ** 0.5), round(patches**0.5)
    if old * old + special != table.shape[1] or new * new != patches:
        raise ValueError(f"a position table of {table.shape[1] - special} patches cannot become one of {patches}: both must be squares")
    grid = table[:, special:].reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, C, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=align_corners)
    return torch.cat([table[:, :special], grid.permute(0, 2, 3, 1).reshape(1, patches, -1)], dim=1)


class SpaceTimePositions(nn.Module):
    """Learned positions of clips and images: one table, or one of places and one of times, which are added."""

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
        """Return positions (1, special + t·h·w, C), time slowest, the class token's first; interpolated trilinearly for another grid."""
        if self.separate:
            table = (self.temporal.unsqueeze(2) + self.spatial.unsqueeze(1)).flatten(1, 2)
            front = table[:, :0] if self.first is None else self.first
        else:
            front, table = self.joint[:, : int(self.class_token)], self.joint[:, int(self.class_token) :]
        if grid is not None and grid != self.grid:
            volume = table.transpose(1, 2).reshape(1, -1, *self.grid)  # (1, C, t, h, w)
            table = F.interpolate(volume, size=grid, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)
        return torch.cat([front, table], dim=1)
