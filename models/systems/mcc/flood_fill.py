"""Adaptive queries by flood fill: few cells of a lattice are queried where most of space is empty.

Level 0 queries a coarse lattice, and the cells that contain seen points. Each further level queries the neighbours of cells found before:
first at half the stride of the coarse lattice, around every cell that is nearly occupied; then at distance 1, around every occupied cell,
until no new one is found. So everything connected to a found cell is found, cell by cell as in the dense grid; parts that lie between the
cells of the coarse lattice and touch no found cell are missed. `FloodFill` is a value and knows no network: it returns the cells to query
and takes predictions. Predictions of earlier queries of the same scene, on this lattice or a nested one, are reused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from models.layers.stepwise import JobTooLarge, copy_to_own_pages
from models.systems.mcc.lattice import Lattice

REFINE_RATIO = 0.5
"""Ratio of the threshold above which a cell is refined while levels are coarse: parts smaller than the coarse lattice raise the
probabilities around them."""

BODY_CENTRED_STRIDE = 4
"""Minimum stride at which the coarse lattice also has a cell in the centre of each of its cubes: twice as many cells, and still few."""


@dataclass(frozen=True)
class FloodLimits:
    threshold: float
    """Probability above which a cell is occupied."""
    dense: bool
    """Query every cell, in one level."""
    max_queries: int


@dataclass(frozen=True)
class CellPredictions:
    """Cells and the network's predictions of them, in the same order."""

    cells: Tensor
    """int64 (P,)."""
    occupancy: Tensor
    """Probabilities, float32 (P,)."""
    colours: Tensor
    """uint8 (P, 3); 0 for cells that are not occupied."""

    @staticmethod
    def cat(parts: tuple[CellPredictions, ...]) -> CellPredictions:
        return CellPredictions(*(torch.cat(columns) for columns in zip(*((p.cells, p.occupancy, p.colours) for p in parts), strict=True)))

    def copy(self) -> CellPredictions:
        """Return a copy that does not share memory, for a cache."""
        return CellPredictions(copy_to_own_pages(self.cells), copy_to_own_pages(self.occupancy), copy_to_own_pages(self.colours))

    def select(self, indices: Tensor) -> CellPredictions:
        return CellPredictions(self.cells[indices], self.occupancy[indices], self.colours[indices])

    @property
    def nbytes(self) -> int:
        return self.cells.nbytes + self.occupancy.nbytes + self.colours.nbytes


@dataclass(frozen=True)
class FloodFill:
    lattice: Lattice
    limits: FloodLimits
    pending: Tensor
    """Cells of this level, int64 (P,), sorted."""
    predictions: CellPredictions
    """Predictions of all earlier levels, sorted by cell."""
    stride: int
    """Distance of the cells of this level."""
    done_count: int = 0
    """Number of `pending` cells that were queried."""
    level_predictions: tuple[CellPredictions, ...] = ()
    level: int = 0
    cached: CellPredictions | None = None
    """Predictions of cells of this lattice from earlier jobs, sorted by cell."""
    cache_hits: int = 0
    """Number of predictions that came from `cached`."""

    @staticmethod
    def start(lattice: Lattice, limits: FloodLimits, seen: Tensor, cached: CellPredictions | None = None) -> FloodFill:
        """Start a flood fill. Raises JobTooLarge.

        seen: points (n, n, 3) in normalised units, not finite where there is none. cached: see `reusable_predictions`.
        """
        stride = 1 if limits.dense else lattice.coarse_stride()
        coarse = _coarse_cells(lattice, stride, seen.device)
        cells = coarse if stride == 1 else _sort_unique(torch.cat([coarse, _cells_containing(lattice, seen)]))
        empty = CellPredictions(cells[:0], torch.empty(0, device=seen.device), torch.empty(0, 3, dtype=torch.uint8, device=seen.device))
        return FloodFill(lattice, limits, _check_limit(cells, 0, lattice, limits), empty, stride, cached=cached)._use_cached()

    def next_cells(self, count: int) -> Tensor:
        """Return up to `count` cells to query next, int64 (Q,)."""
        return self.pending[self.done_count : self.done_count + count]

    def update(self, predictions: CellPredictions) -> FloodFill:
        """Return the state after predictions of the next cells. Raises JobTooLarge if the next level exceeds the limit."""
        done_count, level_predictions = self.done_count + len(predictions.cells), (*self.level_predictions, predictions)
        if done_count < len(self.pending):
            return replace(self, done_count=done_count, level_predictions=level_predictions)
        fresh = CellPredictions.cat(level_predictions)
        return self._next_level(fresh, _merge(self.predictions, fresh))._use_cached()

    @property
    def is_done(self) -> bool:
        return len(self.pending) == 0

    @property
    def remaining(self) -> int:
        """Number of cells of this level that are not queried yet."""
        return len(self.pending) - self.done_count

    @property
    def query_count(self) -> int:
        """Number of queries so far, without cache hits."""
        return len(self.predictions.cells) + sum(len(part.cells) for part in self.level_predictions) - self.cache_hits

    @cached_property
    def nbytes(self) -> int:
        return self.pending.nbytes + self.predictions.nbytes + sum(part.nbytes for part in self.level_predictions)

    def occupied_cells(self) -> CellPredictions:
        """Return the predictions of the cells queried so far that are occupied."""
        predictions = CellPredictions.cat((self.predictions, *self.level_predictions))
        return predictions.select(predictions.occupancy > self.limits.threshold)

    def surface(self) -> CellPredictions:
        """Return the predictions of occupied cells and of their queried neighbours, sorted by cell: all that a surface between them depends
        on."""
        around = _neighbourhood(self.lattice, self.occupied_cells().cells, 1)
        return self.predictions.select(torch.isin(self.predictions.cells, around, assume_unique=True))

    def _use_cached(self) -> FloodFill:
        """Use cached predictions of this level, and of the following levels while they leave nothing to query."""
        flood = self
        while flood.cached is not None and len(flood.pending):
            hits = flood.cached.select(torch.isin(flood.cached.cells, flood.pending, assume_unique=True))
            remaining = flood.pending[~torch.isin(flood.pending, hits.cells, assume_unique=True)]
            flood = replace(flood, pending=remaining, level_predictions=(hits,), cache_hits=flood.cache_hits + len(hits.cells))
            if len(remaining):
                break
            flood = flood._next_level(hits, _merge(flood.predictions, hits))
        return flood

    def _next_level(self, fresh: CellPredictions, predictions: CellPredictions) -> FloodFill:
        if self.limits.dense or self.lattice.coarse_stride() == 1:
            return replace(
                self, pending=self.pending[:0], predictions=predictions, done_count=0, level_predictions=(), level=self.level + 1
            )
        reach = max(1, self.stride // 2)
        if self.stride == 1:  # neighbours of earlier cells were queried already
            centres = fresh.cells[fresh.occupancy > self.limits.threshold]
        elif reach > 1:
            centres = predictions.cells[predictions.occupancy > REFINE_RATIO * self.limits.threshold]
        else:
            centres = predictions.cells[predictions.occupancy > self.limits.threshold]
        around = _neighbourhood(self.lattice, centres, reach)
        new = around[~torch.isin(around, predictions.cells, assume_unique=True)]
        pending = _check_limit(new, len(predictions.cells), self.lattice, self.limits)
        state = replace(
            self, pending=pending, predictions=predictions, stride=reach, done_count=0, level_predictions=(), level=self.level + 1
        )
        if len(pending) or self.stride == 1:
            return state
        none = predictions.select(torch.zeros(0, dtype=torch.int64, device=pending.device))
        return state._next_level(none, predictions) if reach > 1 else state


def reusable_predictions(
    predictions: CellPredictions, source: Lattice, source_threshold: float, lattice: Lattice, threshold: float
) -> CellPredictions | None:
    """Convert a scene's predictions for `FloodFill.start` on another lattice and threshold; None if the lattices do not nest.

    predictions: sorted by cell; those above `source_threshold` have colours. Those that need a colour at `threshold`
    and have none are dropped.
    """
    if (source.space.region, source.space.extent) != (lattice.space.region, lattice.space.extent):
        return None
    reusable = predictions.select((predictions.occupancy <= threshold) | (predictions.occupancy > source_threshold))
    reusable = replace(reusable, colours=reusable.colours.masked_fill((reusable.occupancy <= threshold).unsqueeze(1), 0))
    source_side, side = source.shape[0], lattice.shape[0]
    if source_side == side:
        return reusable if source.shape == lattice.shape and source.pitch == lattice.pitch else None
    if lattice.space.region != "cube" or (side % source_side and source_side % side):
        return None
    axis_indices = torch.stack(source.axis_indices(reusable.cells))  # (3, P)
    if side > source_side:
        axis_indices = axis_indices * (side // source_side)
    else:
        step = source_side // side
        shared = (axis_indices % step == 0).all(dim=0)
        reusable, axis_indices = reusable.select(shared), axis_indices[:, shared] // step
    return replace(reusable, cells=_indices(lattice, *axis_indices))


def _coarse_cells(lattice: Lattice, stride: int, device: torch.device) -> Tensor:
    """Return the indices of every `stride`-th cell along each axis, int64 (P,), sorted.

    From a stride of 4 the lattice is body-centred: with the cells in the centre of each cube, no point of space is farther than 2.2 cells
    from a cell, instead of 3.5.
    """
    if stride == 1 and lattice.space.region == "cube":
        return torch.arange(lattice.index_count, device=device)
    first = 0 if lattice.space.region == "cube" else lattice.shape[0] // 2 % stride  # includes a half ball's camera
    corners = _strided_cells(lattice, stride, (first, 0), device)
    if stride < BODY_CENTRED_STRIDE:
        return corners
    half = stride // 2
    return torch.cat([corners, _strided_cells(lattice, stride, ((first + half) % stride, half), device)]).sort().values


def _strided_cells(lattice: Lattice, stride: int, first: tuple[int, int], device: torch.device) -> Tensor:
    """Return the cells at multiples of `stride` from `first`: indices along x and y, and along z; int64 (P,)."""
    width, _, depth = lattice.shape
    across, up = torch.arange(first[0], width, stride, device=device), torch.arange(first[1], depth, stride, device=device)
    return torch.cat([_indices(lattice, *torch.meshgrid(i, across, up, indexing="ij")) for i in torch.split(across, 1)])


def _cells_containing(lattice: Lattice, seen: Tensor) -> Tensor:
    """Return the indices of the cells that contain seen points, int64 (P,)."""
    points = seen[seen.isfinite().all(dim=-1)]  # (P, 3)
    origin = torch.tensor(lattice.origin, device=seen.device)
    i, j, k = ((points - origin) / lattice.pitch).clamp(-1, max(lattice.shape)).round().long().unbind(dim=1)
    return _indices(lattice, i, j, k)


def _neighbourhood(lattice: Lattice, cells: Tensor, reach: int) -> Tensor:
    """Return the cells and their 26 neighbours at a distance of `reach` along the axes; int64 (P,), sorted, each once."""
    for axis in range(3):
        cells = _sort_unique(torch.cat([cells, *_shift(lattice, cells, axis, reach)]))
    axis_indices = lattice.axis_indices(cells)
    return cells[lattice.contains(*axis_indices)]


def _shift(lattice: Lattice, cells: Tensor, axis: int, reach: int) -> Iterator[Tensor]:
    """Yield both neighbours along an axis, inside the box."""
    index, length = lattice.axis_indices(cells)[axis], lattice.shape[axis]
    step = (lattice.shape[1] * lattice.shape[2], lattice.shape[2], 1)[axis]
    yield cells[index >= reach] - reach * step
    yield cells[index < length - reach] + reach * step


def _indices(lattice: Lattice, i: Tensor, j: Tensor, k: Tensor) -> Tensor:
    """Return the indices, int64 (P,), of the axis indices that are cells."""
    _, height, depth = lattice.shape
    return ((i * height + j) * depth + k)[lattice.contains(i, j, k)]


def _sort_unique(cells: Tensor) -> Tensor:
    """Return the cells sorted, each once: (P,)."""
    unique: Tensor = torch.unique(cells)
    return unique


def _check_limit(cells: Tensor, query_count: int, lattice: Lattice, limits: FloodLimits) -> Tensor:
    """Return the cells (P,) if they do not exceed the limit. Raises JobTooLarge, which names the option to change."""
    if query_count + len(cells) > limits.max_queries:
        raise JobTooLarge(
            "spacing",
            f"{lattice.spacing:g} asks more than {limits.max_queries} queries of this scene (OPSIN_MAX_QUERIES); use a larger one",
        )
    return cells


def _merge(earlier: CellPredictions, fresh: CellPredictions) -> CellPredictions:
    both = CellPredictions.cat((earlier, fresh))
    return both.select(both.cells.argsort())
