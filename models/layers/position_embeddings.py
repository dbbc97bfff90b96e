"""Position embeddings: the fixed sine-cosine table, and tables taken to another resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_table(width: int, rows: int, columns: int | None = None) -> Tensor:
    """(1, 1 + rows · columns, width), float32: zeros for the class token, then the grid in raster order.

    columns: as many as rows by default. The first half of the channels encodes the column, the second the row; each half is a
    `sincos_line`. Section A.1 of MAE (arXiv 2111.06377) calls it "the sine-cosine version". What a width has beyond a multiple of 4
    stays 0: models of any width can be built, since most read their tables from a file.
    """
    columns = rows if columns is None else columns
    half = width // 4 * 2
    column = sincos_line(half, columns).expand(rows, -1, -1)
    row = sincos_line(half, rows).unsqueeze(1).expand(-1, columns, -1)
    grid = torch.cat([column, row], dim=2).reshape(1, rows * columns, 2 * half)
    return F.pad(grid, (0, width - 2 * half, 1, 0)).float()


def sincos_line(width: int, length: int) -> Tensor:
    """(length, width), float64: sines, then cosines, of position · 10000^(-k / (width / 2)). Width is a multiple of 2."""
    # on the CPU also where models are built without memory: there its power would import torch's compiler, a second of work
    frequencies = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64, device="cpu") / (width // 2))
    angles = torch.arange(length, dtype=torch.float64, device="cpu").unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def space_time_table(width: int, times: int, rows: int, columns: int) -> Tensor:
    """(1, 1 + times · rows · columns, width), float32, time slowest: the sum of a `sincos_line` in time and a `sincos_table` in space."""
    space = sincos_table(width, rows, columns)
    time = sincos_line(width, times).float().unsqueeze(1)
    return torch.cat([space[:, :1], (time + space[:, 1:]).reshape(1, times * rows * columns, width)], dim=1)


def tiled_table(width: int, times: int, rows: int, columns: int) -> Tensor:
    """(1, 1 + times · rows · columns, width), float32: a `sincos_table`, the same at all times (MAViL)."""
    return repeat_in_time(sincos_table(width, rows, columns), times)


def repeat_in_time(table: Tensor, times: int) -> Tensor:
    """(1, 1 + L, C) → (1, 1 + times · L, C), the class token's row first."""
    return torch.cat([table[:, :1], table[:, 1:].repeat(1, times, 1)], dim=1)


def resize_table(table: Tensor, patches: int, *, special: int, align_corners: bool = False) -> Tensor:
    """(1, special + old², C) → (1, special + patches, C): the square grid bicubically, without antialiasing; special tokens as they are.

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
