"""Which cells a flood asks, of occupancies that are known: it finds what the dense grid finds, for far fewer queries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from models.bundle_schema import QuerySpace
from models.layers.stepwise import JobTooLarge
from models.systems.mcc.flood_fill import CellPredictions, FloodFill, FloodLimits
from models.systems.mcc.lattice import Lattice
from models.systems.mcc.queries import cube_grid, half_ball_grid

REACH = 0.1
Distance = Callable[[Tensor], Tensor]
"""Points (P, 3) → distance from a surface (P,)."""


def sphere(radius: float, *centre: float) -> Distance:
    return lambda points: ((points - torch.tensor(centre or (0.0, 0.0, 0.0))).norm(dim=1) - radius).abs()


def torus(points: Tensor) -> Tensor:
    ring = points[:, :2].norm(dim=1) - 1.8
    return (torch.stack([ring, points[:, 2]], dim=1).norm(dim=1) - 0.5).abs()


def box(*half: float) -> Distance:
    def distance(points: Tensor) -> Tensor:
        beyond = points.abs() - torch.tensor(half)
        return (beyond.clamp(min=0).norm(dim=1) + beyond.amax(dim=1).clamp(max=0)).abs()

    return distance


def rod(points: Tensor) -> Tensor:
    """Return the distance to a line that meets no lattice: 2 long, off all axes."""
    direction = torch.tensor([0.6, 0.64, 0.48])
    along = ((points - 0.013) @ direction).clamp(-1, 1)
    return (points - 0.013 - along.unsqueeze(1) * direction).norm(dim=1)


def join(*parts: Distance) -> Distance:
    return lambda points: torch.stack([part(points) for part in parts]).amin(dim=0)


SHAPES = {
    "sphere": sphere(1.73),
    "torus": torus,
    "box": box(1.6, 1.1, 0.9),
    "plate": box(1.5, 1.2, 0.0),
    "rod": rod,
    "three apart": join(sphere(0.6, -1.5, 0.0, 0.0), sphere(0.4, 1.5, 0.3, 0.0), box(0.3, 0.3, 0.3)),
}


def probability(distance: Tensor) -> Tensor:
    """Return the probability that a trained network gives: 0.1 at the reach, lower on both sides."""
    return torch.sigmoid(-(distance - REACH) / 0.02 + np.log(0.1 / 0.9))


def run_flood(
    shape: Distance, lattice: Lattice, seen: Tensor | None = None, *, chunk: int = 5000, threshold: float = 0.1, **limits: object
) -> FloodFill:
    chosen = FloodLimits(threshold, **({"dense": False, "max_queries": 20_000_000} | limits))  # type: ignore[arg-type]
    flood = FloodFill.start(lattice, chosen, torch.full((1, 1, 3), torch.nan) if seen is None else seen)
    while not flood.is_done:
        cells = flood.next_cells(chunk)
        found = probability(shape(torch.from_numpy(lattice.points(cells.numpy()))))
        flood = flood.update(CellPredictions(cells, found, torch.zeros(len(cells), 3, dtype=torch.uint8)))
    return flood


def find_occupied(flood: FloodFill) -> set[int]:
    return set(flood.occupied_cells().cells.tolist())


def dense(shape: Distance, lattice: Lattice) -> set[int]:
    return find_occupied(run_flood(shape, lattice, dense=True, chunk=10**7))


@pytest.mark.parametrize("spacing", [0.05, 0.1])
@pytest.mark.parametrize("name", SHAPES)
def test_flood_finds_dense_grids_surface_with_few_queries(name: str, spacing: float) -> None:
    lattice = Lattice(QuerySpace(), spacing)
    flood, everything = run_flood(SHAPES[name], lattice), dense(SHAPES[name], lattice)
    assert find_occupied(flood) == everything
    around = run_flood(SHAPES[name], lattice).surface()
    coarse = lattice.count / lattice.coarse_stride() ** 3 * (2 if lattice.coarse_stride() == 4 else 1)
    assert flood.query_count <= 1.15 * (coarse + len(around.cells))
    assert lattice.count / flood.query_count >= (10 if spacing == 0.05 else 4)


@pytest.mark.parametrize(("spacing", "missed"), [(0.05, 0), (0.1, 8)])
def test_small_parts_are_rarely_missed(spacing: float, missed: int) -> None:
    """The blobs lie at random places. Their occupied cells are 0.2 to 0.4 across, about the spacing of the coarse lattice. At a spacing
    of 0.05 that lattice is body-centred, none of 60 is missed, and what is found is found whole."""
    lattice, generator = Lattice(QuerySpace(), spacing), torch.Generator().manual_seed(0)
    lost = 0
    for centre in (4 * torch.rand(60, 3, generator=generator) - 2).tolist():
        shape = sphere(0.1 * torch.rand((), generator=generator).item(), *centre)
        everything, found = _near(shape, centre, lattice), find_occupied(run_flood(shape, lattice))
        lost += not found
        assert found == everything or not found
    assert lost <= missed


def _near(shape: Distance, centre: list[float], lattice: Lattice) -> set[int]:
    """Return the occupied cells in a box around a centre."""
    low, high = (np.array(centre) - 0.5, np.array(centre) + 0.5)
    ranges = [np.flatnonzero((axis > a) & (axis < b)) for axis, a, b in zip(lattice.axes, low, high, strict=True)]
    i, j, k = np.meshgrid(*ranges, indexing="ij")
    cells = ((i * lattice.shape[1] + j) * lattice.shape[2] + k).ravel()
    found = probability(shape(torch.from_numpy(lattice.points(cells)))) > 0.1
    return set(cells[found.numpy()].tolist())


@pytest.mark.parametrize(
    ("space", "spacing", "grid"),
    [
        (QuerySpace(), 0.1, cube_grid(3.0, 0.1)),
        (QuerySpace(), 0.7, cube_grid(3.0, 0.7)),
        (QuerySpace(region="half-ball", extent=6.0), 0.2, half_ball_grid(6.0, 0.2)),
        (QuerySpace(region="half-ball", extent=6.0), 0.7, half_ball_grid(6.0, 0.7)),
    ],
    ids=str,
)
def test_dense_cells_are_the_published_grid(space: QuerySpace, spacing: float, grid: Tensor) -> None:
    lattice = Lattice(space, spacing)
    cells = run_flood(sphere(1.0), lattice, dense=True, chunk=10**7).predictions.cells
    assert torch.equal(torch.from_numpy(lattice.points(cells.numpy())), grid)
    assert lattice.count == len(grid)


@pytest.mark.parametrize("spacing", [0.2, 0.1])
def test_a_half_ball_is_flooded_within_its_bounds(spacing: float) -> None:
    lattice = Lattice(QuerySpace(region="half-ball", extent=6.0, reach=0.2), spacing)
    shape = join(sphere(5.95), sphere(0.3, 0.0, 0.0, 0.1), box(0.5, 0.5, 2.0))
    assert find_occupied(run_flood(shape, lattice)) == dense(shape, lattice)


def test_what_was_seen_is_found_however_small() -> None:
    speck = sphere(0.0, 0.15, 0.1, 0.1)
    narrow: Distance = lambda points: 0.09 + speck(points)  # noqa: E731  # one cell alone
    lattice = Lattice(QuerySpace(), 0.05)
    assert not find_occupied(run_flood(narrow, lattice))
    assert len(find_occupied(run_flood(narrow, lattice, torch.tensor([[[0.15, 0.1, 0.1], [torch.nan, 0.0, 0.0], [99.0, 0.0, 0.0]]])))) >= 1


def test_chunks_change_nothing() -> None:
    lattice = Lattice(QuerySpace(), 0.1)
    one, many = (run_flood(torus, lattice, chunk=chunk) for chunk in (10**7, 777))
    assert torch.equal(one.predictions.cells, many.predictions.cells) and one.level == many.level


def test_too_many_queries_end_a_job_before_they_run() -> None:
    lattice = Lattice(QuerySpace(), 0.05)
    with pytest.raises(JobTooLarge, match=r"spacing: 0\.05 asks more than 1000 queries"):
        run_flood(torus, lattice, max_queries=1000)
    with pytest.raises(JobTooLarge, match="OPSIN_MAX_QUERIES"):
        run_flood(torus, lattice, max_queries=40_000)
    assert run_flood(torus, lattice, max_queries=250_000).query_count <= 250_000


def test_thresholds_below_the_reach_thicken_what_is_found() -> None:
    lattice = Lattice(QuerySpace(), 0.1)
    thin, thick = (find_occupied(run_flood(torus, lattice, threshold=threshold)) for threshold in (0.3, 0.05))
    assert thin < thick
