"""Queries of MCC and the use of its predictions: grids, training queries and their labels, point clouds, metrics (arXiv 2301.08247)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.registry import ForwardCall, InputMaker
from models.systems.mcc.model import MCC, MCCConfig, SceneCache, decode_colours


def cube_grid(half_width: float, spacing: float) -> Tensor:
    """Return the grid (N³, 3) of CO3D's evaluation: N points per axis from -half_width, without the opposite end; x slowest, z fastest."""
    count = math.ceil(2 * half_width / spacing)
    axis = (torch.arange(count, dtype=torch.float32) - count / 2) / (count / 2 / half_width)
    return torch.cartesian_prod(axis, axis, axis)


def half_ball_grid(radius: float, spacing: float) -> Tensor:
    """Return the grid (Q, 3) of Hypersim's evaluation: points with z >= 0 and not farther than the radius; x slowest, z fastest."""
    ratio = radius / spacing
    steps = int(ratio)
    across, up = torch.arange(-steps, steps + 1), torch.arange(steps + 1)
    index = torch.cartesian_prod(across, across, up)
    if ratio.is_integer():  # points on the sphere belong to the grid, whatever rounding says
        return (index * spacing)[index.square().sum(dim=1) <= steps**2].float()
    points = index.float() * spacing
    x, y, z = points.unbind(dim=1)
    return points[(x * x + y * y + z * z).sqrt() <= radius]


@dataclass(frozen=True)
class QueryLabels:
    occupied: Tensor
    """(B, Q) of 0 and 1: 1 if a true point is nearer than the threshold."""
    colours: Tensor
    """(B, Q, 3) of the nearest true point; 0 if it is not near."""


def label_queries(queries: Tensor, truth: Tensor, colours: Tensor, threshold: float = 0.1) -> QueryLabels:
    """Label queries (B, Q, 3) by the points of the surface, truth (B, G, 3), and their colours (B, G, 3) in 0..1."""
    distance, nearest = nearest_points(queries, truth)
    occupied = (distance < threshold).to(queries.dtype)
    return QueryLabels(occupied, colours.gather(1, nearest.unsqueeze(-1).expand(-1, -1, 3)) * occupied.unsqueeze(-1))


def nearest_points(points: Tensor, candidates: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Find the nearest neighbour of each point: (B, P, 3), (B, G, 3) → distance and index, (B, P) each.

    Uses differences, not dot products, to avoid cancellation.
    """
    chunks = [
        torch.cdist(part, candidates, compute_mode="donot_use_mm_for_euclid_dist").min(dim=-1) for part in torch.split(points, chunk, dim=1)
    ]
    return torch.cat([part.values for part in chunks], dim=1), torch.cat([part.indices for part in chunks], dim=1)


@dataclass(frozen=True)
class PointCloud:
    """Coloured points of one scene, in the order of the queries."""

    points: Tensor
    """(P, 3), not contracted."""
    occupancy: Tensor
    """(P,), probabilities."""
    colours: Tensor
    """(P, 3) in 0..1; regressed colours may lie outside."""


@torch.no_grad()
def reconstruct(
    model: MCC, scene: SceneCache, queries: Tensor, *, threshold: float = 0.1, temperature: float = 0.1, chunk: int = 2000
) -> PointCloud:
    """Return the occupied ones of queries (Q, 3) in a scene (B = 1), and their colours, which are computed for no other queries."""
    points, occupancies, colours = [], [], []
    for part in torch.split(queries, chunk):
        decoded = model.decode_queries(scene, part.unsqueeze(0))[0]  # (Q, Cd)
        occupancy = model.predict_occupancy(decoded).sigmoid()
        occupied = occupancy > threshold
        points.append(part[occupied])
        occupancies.append(occupancy[occupied])
        colours.append(decode_colours(model.predict_outputs(decoded[occupied]), temperature))
    return PointCloud(torch.cat(points), torch.cat(occupancies), torch.cat(colours))


@dataclass(frozen=True)
class CoverageScore:
    """Coverage of true points by predicted ones: fractions in 0..1, all 0 if nothing was predicted."""

    precision: float
    recall: float
    recall_as_published: float
    """Recall of the published evaluation, which counts only the first ⌈P / 1000⌉ · 1000 true points, for P predicted ones.

    It divides by the number of all true points: too low if there are more true points than predicted ones.
    """

    @property
    def f1(self) -> float:
        return harmonic_mean(self.precision, self.recall)

    @property
    def f1_as_published(self) -> float:
        return harmonic_mean(self.precision, self.recall_as_published)


def score_coverage(predicted: Tensor, truth: Tensor, threshold: float = 0.1, *, published_slice: int = 1000) -> CoverageScore:
    """Score predicted points (P, 3) against true ones (G, 3). threshold: distance below which a point is covered."""
    if len(predicted) == 0:
        return CoverageScore(0.0, 0.0, 0.0)
    is_correct = nearest_points(predicted[None], truth[None])[0][0] < threshold
    is_covered = nearest_points(truth[None], predicted[None])[0][0] < threshold
    counted = published_slice * math.ceil(len(predicted) / published_slice)
    return CoverageScore(
        precision=is_correct.double().mean().item(),
        recall=is_covered.double().mean().item(),
        recall_as_published=is_covered[:counted].sum().item() / len(truth),
    )


def harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


QUERIES = 2048


def random_scene_inputs(config: MCCConfig, make: InputMaker) -> tuple[Tensor, Tensor]:
    """Make a random image (B, 3, S, S) and seen points (B, n, n, 3)."""
    return make.normal(3, config.image_size, config.image_size), make.normal(config.seen_size, config.seen_size, 3)


def scene_queries(model: MCC, config: MCCConfig, make: InputMaker) -> ForwardCall:
    pixels, seen = random_scene_inputs(config, make)
    queries = make.normal(QUERIES, 3)
    return lambda: model(pixels, seen, queries)
