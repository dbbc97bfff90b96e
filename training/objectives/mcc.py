"""MCC's training (arXiv 2301.08247): which points of space are occupied, and what colour the occupied ones have."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.systems.mcc.model import MCC, DropPathMasks
from models.systems.mcc.queries import QueryLabels, label_queries
from models.systems.mcc.scene_inputs import SceneAugmentation
from training import random_draws
from training.collectives import term_of_mean
from training.objectives.checks import require_model, require_tensor
from training.objectives.protocols import Batch, ObjectiveContext, ObjectiveSettings


class MCCSettings(ObjectiveSettings):
    """The defaults are CO3D's. Weights of the losses are the model's."""

    kind: Literal["mcc"] = "mcc"
    queries: int = Field(default=550, gt=0)
    """Points asked in each scene."""
    region: Literal["cube", "half-ball"] = "cube"
    """Region of uniform queries: -size to size on every axis (CO3D), or z >= 0 within a radius of size (Hypersim)."""
    size: float = Field(default=3.0, gt=0)
    near: float = Field(default=0.0, ge=0, le=1)
    """Share of the queries that are placed around true points instead; 0 as published."""
    spread: float | None = Field(default=None, gt=0)
    """Maximum standard deviation of their offset on each axis, drawn log-uniformly from `threshold` to this for each query.
    None: `threshold`."""
    threshold: float = Field(default=0.1, gt=0)
    """A query is occupied if a true point is nearer; before augmentation."""
    scale: float = Field(default=0.2, ge=0, lt=1)
    """Each axis is scaled by a factor from 1 - scale to 1 + scale. All samples of a step are augmented alike."""
    shift: float = Field(default=1.0, ge=0)
    """Largest translation along each axis; 0 for Hypersim, whose camera is the origin."""
    degrees: int = Field(default=180, ge=0, le=180)
    """Largest rotation about each axis, in whole degrees; 0 for Hypersim."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability that scene and image are mirrored."""

    def build(self, model: nn.Module, context: ObjectiveContext) -> MCCObjective:
        network: MCC = require_model(self.kind, model, MCC)
        if network.back is not None and self.degrees:
            raise ValueError(f"degrees: {self.degrees}, where a network with model.config.back needs 0: the frame's axes are the camera's")
        return MCCObjective(network, self, context)


class MCCObjective(nn.Module):
    """Batch: normalised `pixels` (B, 3, any, any); the point seen in each pixel of a map, `points` (B, n, n, 3), and whether there is one,
    `valid` (B, n, n); the true points of the surface, `surface` (B, G, 3), and their colours in 0..1, `colours` (B, G, 3)."""

    def __init__(self, model: MCC, settings: MCCSettings, context: ObjectiveContext | None = None) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self._context = context or ObjectiveContext()
        if model.back is not None:  # it was trained before, and is what it was judged to be
            model.back.requires_grad_(False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        outputs, labels = self.decode_training_queries(batch)
        return self._losses(self.model.predict_outputs(outputs), labels)

    def decode_training_queries(self, batch: Batch) -> tuple[Tensor, QueryLabels]:
        """Return decoder outputs (B, Q, C) of training queries, from which `MCC` predicts, and labels of the queries."""
        draw, truth = batch["draw"], require_tensor(batch, "surface")
        queries = self.queries(draw, truth)
        labels = find_labels(queries, truth, require_tensor(batch, "colours"), self.settings.threshold)
        drop_path = self._keep(draw) if self.training else None
        seen = require_tensor(batch, "points").masked_fill(~require_tensor(batch, "valid").bool().unsqueeze(-1), torch.inf)
        return self._decode(self.images(require_tensor(batch, "pixels")), seen, queries, self.augmentation(draw), drop_path), labels

    def images(self, pixels: Tensor) -> Tensor:
        return pictures_in_unit_range(pixels, self._context)

    def losses(
        self,
        images: Tensor,
        seen: Tensor,
        queries: Tensor,
        labels: QueryLabels,
        augmentation: SceneAugmentation,
        drop_path: DropPathMasks | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses of queries (B, Q, 3), which like their labels are not augmented yet.

        `drop_path` has the branches that stochastic depth keeps; None: all, or random ones in training.
        """
        return self._losses(self.model.predict_outputs(self._decode(images, seen, queries, augmentation, drop_path)), labels)

    def _decode(
        self, images: Tensor, seen: Tensor, queries: Tensor, augmentation: SceneAugmentation, drop_path: DropPathMasks | None
    ) -> Tensor:
        images, seen, moved = (
            augmentation.transform_images(images),
            augmentation.transform_seen(seen),
            augmentation.transform_points(queries),
        )
        with fused_attention(images.device):
            return self.model.decode_queries(self.model.cache_scene(self.model.encode(images, seen, drop_path), drop_path), moved)

    def _losses(self, predicted: Tensor, labels: QueryLabels) -> dict[str, Tensor]:
        losses = self.model.losses(predicted, labels.occupied, labels.colours)
        occupancy = term_of_mean(losses.occupancy, labels.occupied.numel())
        colour = term_of_mean(losses.colour, labels.occupied.sum())
        config = self.model.config
        loss = config.occupancy_weight * occupancy + config.colour_weight * colour
        return {"loss": loss, "loss_occupancy": occupancy.detach(), "loss_colour": colour.detach()}

    def queries(self, draw: Tensor, truth: Tensor) -> Tensor:
        """Draw queries (B, Q, 3), some of them near true points (B, G, 3)."""
        settings = self.settings
        far = sample_cube(draw, settings.queries, settings.size)
        if settings.region == "half-ball":
            far = sample_half_ball(draw, settings.queries, settings.size)
        count = round(settings.near * settings.queries)
        if not count:
            return far
        chosen = random_draws.integers(draw, (count, 1), 0, truth.shape[1], "near points").expand(-1, -1, 3)
        std: float | Tensor = settings.threshold
        if settings.spread is not None:
            exponent = random_draws.uniform(draw, (count, 1), "near deviations").to(truth)
            std = settings.threshold * (settings.spread / settings.threshold) ** exponent
        near = truth.gather(1, chosen) + std * random_draws.normal(draw, (count, 3), "near offsets").to(truth)
        return torch.cat([near, far[:, count:]], dim=1)

    def augmentation(self, draw: Tensor) -> SceneAugmentation:
        settings = self.settings
        return augmentation(draw, scale=settings.scale, flip=settings.flip, shift=settings.shift, degrees=settings.degrees)

    def _keep(self, draw: Tensor) -> DropPathMasks | None:
        """Drawn per sample."""
        config = self.model.config
        if not config.drop_path:
            return None
        fates = {
            name: (random_draws.uniform(draw, (depth, 2), f"drop path {name}") >= config.drop_path).float().permute(1, 2, 0)
            for name, depth in (("xyz", config.depth), ("rgb", config.depth), ("decoder", config.decoder_depth))
        }
        return DropPathMasks(**fates)


def pictures_in_unit_range(pixels: Tensor, context: ObjectiveContext) -> Tensor:
    """Normalised (B, 3, H, W) → in 0..1, as the network takes them."""
    preprocess = context.preprocess
    if preprocess is None:
        return pixels
    mean, std = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return pixels * std + mean


def augmentation(draw: Tensor, *, scale: float, flip: float, shift: float = 0.0, degrees: int = 0) -> SceneAugmentation:
    """Draw an augmentation that the samples of all ranks share."""
    shared = random_draws.batch_draw(draw)
    uniform = 2 * random_draws.uniform(shared, (2, 3), "augmentation")[0].cpu() - 1
    return SceneAugmentation(
        scale=1 + scale * uniform[0],
        shift=shift * uniform[1],
        degrees=random_draws.integers(shared, (3,), -degrees, degrees + 1, "degrees")[0].cpu().float(),
        flip=bool(random_draws.uniform(shared, (), "flip") < flip),
    )


def fused_attention(device: torch.device) -> AbstractContextManager[Any]:
    """On a CPU the loop runs attention unfused, but hundreds of queries that look at hundreds of tokens are worth the fused kernel."""
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]) if device.type == "cpu" else nullcontext()


def find_labels(queries: Tensor, truth: Tensor, colours: Tensor, threshold: float) -> QueryLabels:
    """`models.systems.mcc.queries.label_queries`; on a CPU by a tree, which is many times as fast as all distances."""
    if queries.device.type != "cpu":
        return label_queries(queries, truth, colours, threshold)
    occupied, nearest = [], []
    for points, surface in zip(queries.numpy(), truth.numpy(), strict=True):
        distance, index = cKDTree(surface, balanced_tree=False, compact_nodes=False).query(points)
        occupied.append(torch.from_numpy(distance < threshold))
        nearest.append(torch.from_numpy(index))
    near = torch.stack(occupied).to(queries.dtype)  # (B, Q)
    chosen = colours.gather(1, torch.stack(nearest).unsqueeze(-1).expand(-1, -1, 3))
    return QueryLabels(near, chosen * near.unsqueeze(-1))


def sample_cube(draw: Tensor, count: int, half_width: float) -> Tensor:
    """Draw points (B, count, 3), uniformly."""
    return half_width * (2 * random_draws.uniform(draw, (count, 3), "queries") - 1)


def sample_half_ball(draw: Tensor, count: int, radius: float) -> Tensor:
    """Draw points (B, count, 3) with z >= 0 within a radius, uniformly, from directions and distances."""
    direction = random_draws.normal(draw, (count, 3), "directions")
    distance = radius * random_draws.uniform(draw, (count, 1), "distances").double() ** (1 / 3)
    points = direction / direction.norm(dim=-1, keepdim=True) * distance.float()
    return torch.cat([points[..., :2], points[..., 2:].abs()], dim=-1)


RIDGE = 1.0
"""Added to the diagonals of the normal equations of some ten thousand queries."""
_ROUNDS = 12
"""Rounds of Newton's method at most; it takes fewer."""


@torch.no_grad()
def fit_mcc_head(objective: MCCObjective, batches: Iterable[Batch]) -> None:
    """Set `decoder_pred`, in place: occupancy by logistic regression, colours of occupied queries by ridge regression.

    Of a network that predicts classes of colours, occupancy alone is fitted.
    """
    model = objective.model
    rows, occupied, colours = [], [], []
    for batch in batches:
        outputs, labels = objective.decode_training_queries(batch)
        rows.append(outputs.flatten(0, 1))
        occupied.append(labels.occupied.flatten())
        colours.append(labels.colours.flatten(0, 1))
    x = F.pad(torch.cat(rows).double(), (0, 1), value=1.0)  # (queries, C + 1), the last for the bias
    inside = torch.cat(occupied).double()
    _write(model.decoder_pred, slice(0, 1), _logistic(x, inside).unsqueeze(1))
    if model.config.regress_colour:
        near = x[inside > 0]
        targets = torch.cat(colours).double()[inside > 0]
        _write(model.decoder_pred, slice(1, 4), torch.linalg.solve(near.T @ near + _ridge(x), near.T @ targets))


def _logistic(x: Tensor, y: Tensor) -> Tensor:
    """Fit weights (C,) of a logistic regression of y (N,), 0 or 1, on x (N, C), by Newton's method."""
    weights, ridge = x.new_zeros(x.shape[1]), _ridge(x)
    for _ in range(_ROUNDS):
        p = (x @ weights).sigmoid()
        step = torch.linalg.solve((x * (p * (1 - p)).unsqueeze(1)).T @ x + ridge, x.T @ (p - y) + RIDGE * weights)
        weights = weights - step
        if step.norm() < 1e-4 * weights.norm():
            break
    return weights


def _ridge(x: Tensor) -> Tensor:
    return RIDGE * torch.eye(x.shape[1], dtype=x.dtype)


def _write(layer: torch.nn.Linear, outputs: slice, weights: Tensor) -> None:
    """Set outputs of a layer to weights (C + 1, outputs), the last row of which are biases."""
    layer.weight[outputs] = weights[:-1].T.float()
    layer.bias[outputs] = weights[-1].float()
