"""Queries of MCC and the use of its answers: grids, training queries and their labels, point clouds, metrics (arXiv 2301.08247)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.systems.mcc.model import MCC, Scene, decode_colours


def cube_grid(half_width: float, spacing: float) -> Tensor:
    """(N³, 3): N points along an axis from -half_width on, the other end left out, as CO3D is asked; x slowest, z fastest."""
    count = math.ceil(2 * half_width / spacing)
    axis = (torch.arange(count, dtype=torch.float32) - count / 2) / (count / 2 / half_width)
    return torch.cartesian_prod(axis, axis, axis)


def half_ball_grid(radius: float, spacing: float) -> Tensor:
    """(Q, 3): the points of a grid with z >= 0 and no farther than the radius, as Hypersim is asked; x slowest, z fastest."""
    ratio = radius / spacing
    steps = int(ratio)
    across, up = torch.arange(-steps, steps + 1), torch.arange(steps + 1)
    index = torch.cartesian_prod(across, across, up)
    if ratio.is_integer():  # points on the sphere belong to the grid, whatever rounding says
        return (index * spacing)[index.square().sum(dim=1) <= steps**2].float()
    points = index.float() * spacing
    x, y, z = points.unbind(dim=1)
    return points[(x * x + y * y + z * z).sqrt() <= radius]


def draw_in_cube(batch: int, count: int, half_width: float, generator: torch.Generator) -> Tensor:
    """(B, Q, 3), uniform."""
    return half_width * (2 * torch.rand(batch, count, 3, generator=generator) - 1)


def draw_in_half_ball(batch: int, count: int, radius: float, generator: torch.Generator) -> Tensor:
    """(B, Q, 3), uniform where z >= 0 and the distance is below the radius."""
    while True:
        drawn = draw_in_cube(1, 3 * batch * count, radius, generator)[0]  # a ball fills more than half of its cube
        drawn = torch.cat([drawn[:, :2], drawn[:, 2:].abs()], dim=1)
        inside = drawn[drawn.norm(dim=1) < radius]
        if len(inside) >= batch * count:
            return inside[: batch * count].view(batch, count, 3)


@dataclass(frozen=True)
class Labels:
    occupied: Tensor
    """(B, Q) of 0 and 1: a true point is nearer than the threshold."""
    colours: Tensor
    """(B, Q, 3) of the nearest true point; 0 where it is not near."""


def label(queries: Tensor, truth: Tensor, colours: Tensor, threshold: float = 0.1) -> Labels:
    """queries (B, Q, 3); truth (B, G, 3), the points of the surface, and their colours (B, G, 3) in 0..1."""
    distance, nearest = nearest_points(queries, truth)
    occupied = (distance < threshold).to(queries.dtype)
    return Labels(occupied, colours.gather(1, nearest.unsqueeze(-1).expand(-1, -1, 3)) * occupied.unsqueeze(-1))


def nearest_points(points: Tensor, among: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """(B, P, 3), (B, G, 3) → distance and index of the nearest, (B, P) each; differences, not dot products, so that none cancels."""
    found = [
        torch.cdist(part, among, compute_mode="donot_use_mm_for_euclid_dist").min(dim=-1) for part in torch.split(points, chunk, dim=1)
    ]
    return torch.cat([part.values for part in found], dim=1), torch.cat([part.indices for part in found], dim=1)


@dataclass(frozen=True)
class Cloud:
    """Coloured points of one scene, in the order in which they were asked for."""

    points: Tensor
    """(P, 3), as they were asked for, not contracted."""
    occupancy: Tensor
    """(P,), probabilities."""
    colours: Tensor
    """(P, 3) in 0..1; where colours are regressed they may lie outside."""

    def above(self, threshold: float) -> Cloud:
        """Points with an occupancy above a threshold."""
        kept = self.occupancy > threshold
        return Cloud(self.points[kept], self.occupancy[kept], self.colours[kept])


@torch.no_grad()
def reconstruct(model: MCC, scene: Scene, queries: Tensor, *, threshold: float = 0.1, temperature: float = 0.1, chunk: int = 2000) -> Cloud:
    """The queries (Q, 3) that are occupied in a scene (B = 1) and their colours, which are computed for no others."""
    points, occupancies, colours = [], [], []
    for part in torch.split(queries, chunk):
        asked = model.ask(scene, part.unsqueeze(0))[0]  # (Q, Cd)
        occupancy = model.predict_occupancy(asked).sigmoid()
        kept = occupancy > threshold
        points.append(part[kept])
        occupancies.append(occupancy[kept])
        colours.append(decode_colours(model.predict(asked[kept]), temperature))
    return Cloud(torch.cat(points), torch.cat(occupancies), torch.cat(colours))


@dataclass(frozen=True)
class Score:
    """Coverage of true points by predicted ones: shares in 0..1, all 0 where nothing was predicted."""

    precision: float
    recall: float
    recall_as_published: float
    """The published evaluation looks at the first ⌈P / 1000⌉ · 1000 true points only, P being the number of predicted ones, but
    divides by all of them: too low where there are more true points than predicted ones."""

    @property
    def f1(self) -> float:
        return harmonic_mean(self.precision, self.recall)

    @property
    def f1_as_published(self) -> float:
        return harmonic_mean(self.precision, self.recall_as_published)


def score(predicted: Tensor, truth: Tensor, threshold: float = 0.1, *, published_slice: int = 1000) -> Score:
    """predicted (P, 3), truth (G, 3); threshold: the distance below which a point is met."""
    if len(predicted) == 0:
        return Score(0.0, 0.0, 0.0)
    met = nearest_points(predicted[None], truth[None])[0][0] < threshold
    found = nearest_points(truth[None], predicted[None])[0][0] < threshold
    looked_at = published_slice * math.ceil(len(predicted) / published_slice)
    return Score(
        precision=met.double().mean().item(),
        recall=found.double().mean().item(),
        recall_as_published=found[:looked_at].sum().item() / len(truth),
    )


def harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0
