"""Which cells of a lattice to ask, level by level, so that few are asked where most of space is empty.

Level 0 asks a coarse lattice, and the cells in which points were seen. Each further level asks the neighbours of what was found: first at
half the stride of the coarse lattice, around every cell that is nearly occupied; then at distance 1, around every occupied cell, until no
new one is found. So whatever is connected to a cell that was found is found, cell by cell as in the dense grid; what is missed are parts
that lie between the cells of the coarse lattice and touch nothing that was found. `Flood` knows nothing of networks: it says what to ask,
and is told the answers. It is a value. What was asked of the same scene before, on this lattice or a nested one, need not be asked again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from models.layers.bounded_cache import copy_to_own_pages
from models.layers.stepwise import JobTooLarge
from models.systems.mcc.lattice import Lattice

NEARLY = 0.5
"""Share of the threshold from which a cell is looked at more closely while levels are coarse: parts smaller than the coarse lattice
raise the probabilities around them."""

BODY_CENTRED = 4
"""Stride from which the coarse lattice has a cell in the middle of each of its cubes: twice as many, and still few."""


@dataclass(frozen=True)
class Limits:
    """Bounds of what is asked."""

    threshold: float
    """Probability above which a cell is occupied."""
    dense: bool
    """Ask every cell, in one level."""
    most: int
    """Number of queries that a job may ask."""


@dataclass(frozen=True)
class Answers:
    """Cells and what the network says of them, in the same order."""

    cells: Tensor
    """int64 (P,)."""
    occupancy: Tensor
    """Probabilities, float32 (P,)."""
    colours: Tensor
    """uint8 (P, 3); of cells that are not occupied 0."""

    @staticmethod
    def cat(parts: tuple[Answers, ...]) -> Answers:
        return Answers(*(torch.cat(columns) for columns in zip(*((p.cells, p.occupancy, p.colours) for p in parts), strict=True)))

    def kept(self) -> Answers:
        """A copy that is kept for long."""
        return Answers(copy_to_own_pages(self.cells), copy_to_own_pages(self.occupancy), copy_to_own_pages(self.colours))

    def at(self, chosen: Tensor) -> Answers:
        return Answers(self.cells[chosen], self.occupancy[chosen], self.colours[chosen])

    @property
    def nbytes(self) -> int:
        return self.cells.nbytes + self.occupancy.nbytes + self.colours.nbytes


@dataclass(frozen=True)
class Flood:
    lattice: Lattice
    limits: Limits
    pending: Tensor
    """Cells of this level, int64 (P,), sorted."""
    known: Answers
    """Answers of all earlier levels, sorted by cell."""
    stride: int
    """Distance of the cells of this level."""
    taken: int = 0
    """How many of `pending` were asked."""
    parts: tuple[Answers, ...] = ()
    """Their answers."""
    level: int = 0
    memory: Answers | None = None
    """Answers for cells of this lattice that are known already, sorted by cell."""
    recalled: int = 0
    """How many answers were taken from memory."""

    @staticmethod
    def start(lattice: Lattice, limits: Limits, seen: Tensor, memory: Answers | None = None) -> Flood:
        """seen: points (n, n, 3) in normalised units, not finite where there is none; memory: see `nested`. Raises ExcessiveJob."""
        stride = 1 if limits.dense else lattice.stride()
        coarse = _coarse(lattice, stride, seen.device)
        first = coarse if stride == 1 else _sorted(torch.cat([coarse, _cells_of(lattice, seen)]))
        empty = Answers(first[:0], torch.empty(0, device=seen.device), torch.empty(0, 3, dtype=torch.uint8, device=seen.device))
        return Flood(lattice, limits, _allowed(first, 0, lattice, limits), empty, stride, memory=memory)._recall()

    def next_cells(self, count: int) -> Tensor:
        """At most so many of the cells to ask next, int64 (Q,)."""
        return self.pending[self.taken : self.taken + count]

    def answered(self, answers: Answers) -> Flood:
        """Take the network's answers for the cells that come next. Raises ExcessiveJob where the next level asks too much."""
        taken, parts = self.taken + len(answers.cells), (*self.parts, answers)
        if taken < len(self.pending):
            return replace(self, taken=taken, parts=parts)
        fresh = Answers.cat(parts)
        return self._next_level(fresh, _merged(self.known, fresh))._recall()

    @property
    def ended(self) -> bool:
        return len(self.pending) == 0

    @property
    def left(self) -> int:
        """Number of cells of this level that wait to be asked."""
        return len(self.pending) - self.taken

    @property
    def asked(self) -> int:
        """Without those that were known already."""
        return len(self.known.cells) + sum(len(part.cells) for part in self.parts) - self.recalled

    @cached_property
    def nbytes(self) -> int:
        return self.pending.nbytes + self.known.nbytes + sum(part.nbytes for part in self.parts)

    def occupied(self) -> Answers:
        """Answers for the cells asked so far that are occupied."""
        told = Answers.cat((self.known, *self.parts))
        return told.at(told.occupancy > self.limits.threshold)

    def surface(self) -> Answers:
        """The occupied cells and what was asked of their neighbours, sorted by cell: all that a surface between them depends on."""
        around = _around(self.lattice, self.occupied().cells, 1)
        return self.known.at(torch.isin(self.known.cells, around, assume_unique=True))

    def _recall(self) -> Flood:
        """Take from memory what it has of this level, and of those that follow if nothing is left to ask."""
        flood = self
        while flood.memory is not None and len(flood.pending):
            told = flood.memory.at(torch.isin(flood.memory.cells, flood.pending, assume_unique=True))
            left = flood.pending[~torch.isin(flood.pending, told.cells, assume_unique=True)]
            flood = replace(flood, pending=left, parts=(told,), recalled=flood.recalled + len(told.cells))
            if len(left):
                break
            flood = flood._next_level(told, _merged(flood.known, told))
        return flood

    def _next_level(self, fresh: Answers, known: Answers) -> Flood:
        if self.limits.dense or self.lattice.stride() == 1:
            return replace(self, pending=self.pending[:0], known=known, taken=0, parts=(), level=self.level + 1)
        reach = max(1, self.stride // 2)
        if self.stride == 1:  # what was known before is surrounded already
            centres = fresh.cells[fresh.occupancy > self.limits.threshold]
        elif reach > 1:
            centres = known.cells[known.occupancy > NEARLY * self.limits.threshold]
        else:
            centres = known.cells[known.occupancy > self.limits.threshold]
        around = _around(self.lattice, centres, reach)
        new = around[~torch.isin(around, known.cells, assume_unique=True)]
        pending = _allowed(new, len(known.cells), self.lattice, self.limits)
        following = replace(self, pending=pending, known=known, stride=reach, taken=0, parts=(), level=self.level + 1)
        if len(pending) or self.stride == 1:
            return following
        none = known.at(torch.zeros(0, dtype=torch.int64, device=pending.device))
        return following._next_level(none, known) if reach > 1 else following


def nested(answers: Answers, asked: Lattice, threshold: float, lattice: Lattice, other: float) -> Answers | None:
    """Known answers for a scene, as `Flood.start` takes them for another lattice and threshold; None where the lattices do not nest.

    threshold: above which `answers`, sorted by cell, have colours; what needs one at the `other` threshold and has none is left out.
    """
    if (asked.space.region, asked.space.extent) != (lattice.space.region, lattice.space.extent):
        return None
    known = answers.at((answers.occupancy <= other) | (answers.occupancy > threshold))
    known = replace(known, colours=known.colours.masked_fill((known.occupancy <= other).unsqueeze(1), 0))
    before, now = asked.shape[0], lattice.shape[0]
    if before == now:
        return known if asked.shape == lattice.shape and asked.pitch == lattice.pitch else None
    if lattice.space.region != "cube" or (now % before and before % now):
        return None
    places = torch.stack(asked.places(known.cells))  # (3, P)
    if now > before:
        places = places * (now // before)
    else:
        step = before // now
        shared = (places % step == 0).all(dim=0)
        known, places = known.at(shared), places[:, shared] // step
    return replace(known, cells=_indices(lattice, *places))


def _coarse(lattice: Lattice, stride: int, device: torch.device) -> Tensor:
    """Indices of every `stride`-th cell along each axis, int64, sorted; at a stride of 4 those in the middle between eight of them, too
    (body-centred): no point of space is farther than 2.2 cells from one, in place of 3.5."""
    if stride == 1 and lattice.space.region == "cube":
        return torch.arange(lattice.box, device=device)
    first = 0 if lattice.space.region == "cube" else lattice.shape[0] // 2 % stride  # a half ball's camera is met
    corners = _every(lattice, stride, (first, 0), device)
    if stride < BODY_CENTRED:
        return corners
    half = stride // 2
    return torch.cat([corners, _every(lattice, stride, ((first + half) % stride, half), device)]).sort().values


def _every(lattice: Lattice, stride: int, first: tuple[int, int], device: torch.device) -> Tensor:
    """first: places of the first ones along x and y, and along z."""
    width, _, depth = lattice.shape
    across, up = torch.arange(first[0], width, stride, device=device), torch.arange(first[1], depth, stride, device=device)
    return torch.cat([_indices(lattice, *torch.meshgrid(i, across, up, indexing="ij")) for i in torch.split(across, 1)])


def _cells_of(lattice: Lattice, seen: Tensor) -> Tensor:
    """Indices of the cells in which points lie, int64."""
    points = seen[seen.isfinite().all(dim=-1)]  # (P, 3)
    origin = torch.tensor(lattice.origin, device=seen.device)
    i, j, k = ((points - origin) / lattice.pitch).clamp(-1, max(lattice.shape)).round().long().unbind(dim=1)
    return _indices(lattice, i, j, k)


def _around(lattice: Lattice, cells: Tensor, reach: int) -> Tensor:
    """The cells, and their 26 neighbours at a distance of `reach` along the axes; int64, sorted, each once."""
    for axis in range(3):
        cells = _sorted(torch.cat([cells, *_shifted(lattice, cells, axis, reach)]))
    places = lattice.places(cells)
    return cells[lattice.contains(*places)]


def _shifted(lattice: Lattice, cells: Tensor, axis: int, reach: int) -> Iterator[Tensor]:
    """Both neighbours along an axis, inside the box."""
    place, length = lattice.places(cells)[axis], lattice.shape[axis]
    step = (lattice.shape[1] * lattice.shape[2], lattice.shape[2], 1)[axis]
    yield cells[place >= reach] - reach * step
    yield cells[place < length - reach] + reach * step


def _indices(lattice: Lattice, i: Tensor, j: Tensor, k: Tensor) -> Tensor:
    """Places that are cells → their indices, int64 (P,)."""
    _, height, depth = lattice.shape
    return ((i * height + j) * depth + k)[lattice.contains(i, j, k)]


def _sorted(cells: Tensor) -> Tensor:
    """Each once."""
    once: Tensor = torch.unique(cells)
    return once


def _allowed(cells: Tensor, asked: int, lattice: Lattice, limits: Limits) -> Tensor:
    """Raises ExcessiveJob, which names the option that it is about."""
    if asked + len(cells) > limits.most:
        raise JobTooLarge(
            "spacing",
            f"{lattice.spacing:g} asks more than {limits.most} queries of this scene (OPSIN_MAX_QUERIES); use a larger one",
        )
    return cells


def _merged(known: Answers, fresh: Answers) -> Answers:
    both = Answers.cat((known, fresh))
    return both.at(both.cells.argsort())
