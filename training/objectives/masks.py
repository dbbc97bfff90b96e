"""Masks for training DiffMAE (arXiv 2304.03283, section 3): random ones for representations, shapes as users draw them to inpaint.

Masks of patches are bool, True for patches to fill. Every sample's mask is a function of its draw alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import StrEnum

import torch
from torch import Tensor

from models.systems.diffmae.masks import PatchSplit, centre_mask
from training import random_draws

Grid = tuple[int, int, int]
"""Patches in time (1 for images), rows and columns. Masks are the same at all times, but for random ones."""

BOXES = 4
STROKES = 3
SEGMENTS = 6
"""Boxes and strokes of a mask at most; straight parts of a stroke."""
SAMPLES = 4
"""Points along a side of a patch at which strokes are looked for."""


class Strategy(StrEnum):
    RANDOM = "random"
    """A fixed share of the patches."""
    CENTRE = "centre"
    """Half of the rows and half of the columns, in the middle."""
    BLOCK = "block"
    """One rectangle over a quarter to a half of the patches."""
    BOXES = "boxes"
    """One to four rectangles, each side an eighth to a half of the image's."""
    STROKES = "strokes"
    """One to three bent strokes of a brush."""


def split(draw: Tensor, grid: Grid, shares: Mapping[Strategy, float], ratio: float) -> PatchSplit:
    """Draw a strategy for each sample with odds `shares`, and its mask. Random masks remove the fraction `ratio` of the patches."""
    noise = random_draws.uniform(draw, (math.prod(grid),), "mask")
    if set(shares) == {Strategy.RANDOM}:
        return PatchSplit.from_noise(noise, ratio)  # every sample has as many: nothing is padded
    mask = torch.zeros(len(draw), *grid, dtype=torch.bool, device=draw.device)
    for strategy, rows in _chosen(draw, shares):
        mask[rows] = _random(noise[rows], grid, ratio) if strategy is Strategy.RANDOM else _shape(strategy, draw[rows], grid)
    return PatchSplit.from_mask(mask)


def _chosen(draw: Tensor, shares: Mapping[Strategy, float]) -> Iterator[tuple[Strategy, Tensor]]:
    """Yield each strategy with a mask (B,) of its samples."""
    bounds = torch.tensor(list(shares.values()), device=draw.device).cumsum(dim=0)
    chosen = torch.bucketize(random_draws.uniform(draw, (), "strategy") * bounds[-1], bounds, right=True).clamp(max=len(bounds) - 1)
    for number, strategy in enumerate(shares):
        yield strategy, chosen == number


def partition_by_size(split: PatchSplit, count: int) -> list[tuple[Tensor, PatchSplit]]:
    """Sort samples by their number of masked patches into parts of less padding: indices (b,) and splits.

    The number of parts depends only on the batch size: processes that share weights must call the network equally often.
    """
    if count == 1:
        return [(torch.arange(len(split.masked), device=split.masked.device), split)]
    masked, visible = lengths(split.masked, split.masked_size), lengths(split.visible, split.visible_size)
    parts = []
    for rows in masked.argsort(stable=True).tensor_split(min(count, len(masked))):
        m, v = int(masked[rows].max()), int(visible[rows].max())
        sizes = (None if size is None else size[rows, :length] for size, length in ((split.visible_size, v), (split.masked_size, m)))
        parts.append((rows, PatchSplit(split.visible[rows, :v], split.masked[rows, :m], *sizes)))
    return parts


def lengths(positions: Tensor, size: Tensor | None) -> Tensor:
    """Return lengths (B,) without padding."""
    return positions.new_full((len(positions),), positions.shape[1]) if size is None else size.sum(dim=(1, 2))


def _random(noise: Tensor, grid: Grid, ratio: float) -> Tensor:
    visible = noise.argsort(dim=1)[:, : int(noise.shape[1] * (1 - ratio))]
    return torch.ones_like(noise, dtype=torch.bool).scatter_(1, visible, value=False).view(-1, *grid)


def _shape(strategy: Strategy, draw: Tensor, grid: Grid) -> Tensor:
    """Draw masks (B, times, rows, columns) of a strategy."""
    times, rows, columns = grid
    if strategy is Strategy.CENTRE:
        mask = centre_mask(len(draw), (rows, columns)).to(draw.device)
    elif strategy is Strategy.STROKES:
        mask = strokes(draw, rows, columns)
    else:
        mask = block(draw, rows, columns) if strategy is Strategy.BLOCK else boxes(draw, rows, columns)
    return mask.unsqueeze(1).expand(-1, times, -1, -1)


def block(draw: Tensor, rows: int, columns: int) -> Tensor:
    """Draw a rectangle (B, rows, columns): uniform over shapes of a quarter to a half of the patches, and over their positions."""
    shapes = torch.cartesian_prod(torch.arange(1, rows + 1), torch.arange(1, columns + 1)).to(draw.device)
    share = shapes.prod(dim=1) / (rows * columns)
    shapes = shapes[(share >= 0.25) & (share <= 0.5)]
    sides = shapes[random_draws.integers(draw, (1,), 0, len(shapes), "block shape")]  # (B, 1, 2)
    return _rectangles(sides, random_draws.uniform(draw, (1, 2), "block corner"), rows, columns)


def boxes(draw: Tensor, rows: int, columns: int) -> Tensor:
    """Draw rectangles (B, rows, columns)."""
    image = torch.tensor([rows, columns], device=draw.device)
    shortest, longest = (image / 8).ceil(), (image / 2).ceil()
    sides = shortest + (random_draws.uniform(draw, (BOXES, 2), "box sides") * (longest - shortest + 1)).floor()
    count = random_draws.integers(draw, (1, 1), 1, BOXES + 1, "box count")
    sides = sides * (torch.arange(BOXES, device=draw.device).view(1, -1, 1) < count)  # those that are not there cover nothing
    return _rectangles(sides, random_draws.uniform(draw, (BOXES, 2), "box corner"), rows, columns)


def _rectangles(sides: Tensor, places: Tensor, rows: int, columns: int) -> Tensor:
    """sides, places: (B, K, 2) in patches, and in [0, 1) of the room that is left → their union (B, rows, columns)."""
    room = torch.tensor([rows, columns], device=sides.device) - sides + 1
    first = (places * room).floor()  # (B, K, 2)
    last = first + sides
    row = torch.arange(rows, device=sides.device).view(1, 1, rows, 1)
    column = torch.arange(columns, device=sides.device).view(1, 1, 1, columns)
    (top, left), (bottom, right) = (edge[..., None, None].unbind(2) for edge in (first, last))  # (B, K, 1, 1) each
    return ((row >= top) & (row < bottom) & (column >= left) & (column < right)).any(dim=1)


def strokes(draw: Tensor, rows: int, columns: int) -> Tensor:
    """Draw strokes (B, rows, columns): patches that a brush touches, and those in which strokes start.

    Lengths are fractions of the image's sides.
    """
    batch = len(draw)
    start = random_draws.uniform(draw, (STROKES, 1, 2), "stroke start")
    heading = 2 * math.pi * random_draws.uniform(draw, (STROKES, 1), "stroke heading")
    angle = heading + 0.6 * random_draws.normal(draw, (STROKES, SEGMENTS), "stroke bend").cumsum(dim=2)
    length = 0.05 + 0.15 * random_draws.uniform(draw, (STROKES, SEGMENTS), "stroke length")
    move = length.unsqueeze(-1) * torch.stack([angle.sin(), angle.cos()], dim=-1)  # (B, strokes, segments, 2): row, column
    corner = torch.cat([start, start + move.cumsum(dim=2)], dim=2)  # (B, strokes, segments + 1, 2)
    radius = 0.02 + 0.06 * random_draws.uniform(draw, (STROKES,), "stroke radius")
    count = random_draws.integers(draw, (1,), 1, STROKES + 1, "stroke count")
    present = torch.arange(STROKES, device=draw.device) < count  # (B, strokes)
    points = torch.cartesian_prod(_centres(rows * SAMPLES, draw.device), _centres(columns * SAMPLES, draw.device))  # (P, 2)
    touched = torch.zeros(batch, len(points), dtype=torch.bool, device=draw.device)
    for stroke in range(STROKES):
        for segment in range(SEGMENTS):
            distance = _distance(points, corner[:, stroke, segment], corner[:, stroke, segment + 1])
            touched |= (distance <= radius[:, stroke, None]) & present[:, stroke, None]
    mask = touched.view(batch, rows, SAMPLES, columns, SAMPLES).any(dim=4).any(dim=2)
    start_cell = (start.squeeze(2) * torch.tensor([rows, columns], device=draw.device)).long()  # (B, strokes, 2)
    first = torch.zeros(batch, rows * columns, dtype=torch.bool, device=draw.device)
    first.scatter_(1, start_cell[:, :1, 0] * columns + start_cell[:, :1, 1], value=True)
    return mask | first.view(batch, rows, columns)


def _centres(count: int, device: torch.device) -> Tensor:
    return (torch.arange(count, device=device) + 0.5) / count


def _distance(points: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Points (P, 2) from the segments between a and b (B, 2) → (B, P)."""
    along = (b - a).unsqueeze(1)  # (B, 1, 2)
    from_a = points - a.unsqueeze(1)  # (B, P, 2)
    part = ((from_a * along).sum(dim=-1) / along.square().sum(dim=-1)).clamp(0, 1)
    distance: Tensor = torch.linalg.vector_norm(from_a - part.unsqueeze(-1) * along, dim=-1)
    return distance
