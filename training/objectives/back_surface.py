"""The back of an object behind each seen point: thickness along its ray, and the colour of the far side. Trains that part of an MCC."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.systems.mcc.model import MCC
from models.systems.mcc.query_geometry import BackSurface, BackSurfaceNet
from training.objectives.checks import require_model, require_tensor
from training.objectives.mcc import augmentation, pictures_in_unit_range
from training.objectives.protocols import Batch, ObjectiveContext, ObjectiveSettings


class BackSettings(ObjectiveSettings):
    kind: Literal["back"] = "back"
    near: float = Field(default=0.1, gt=0)
    """Error of thickness, in the units of points, up to which the loss is quadratic, then linear: where an object may be thick or thin,
    the mean of both is neither."""
    colour: float = Field(default=0.3, ge=0)
    """Weight of the mean absolute error of colours."""
    scale: float = Field(default=0.2, ge=0, lt=1)
    """Each axis is scaled by a factor from 1 - scale to 1 + scale. All samples of a step are augmented alike."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability that scene and image are mirrored."""

    def build(self, model: nn.Module, context: ObjectiveContext) -> BackSurfaceObjective:
        network: MCC = require_model(self.kind, model, MCC)
        if network.back is None:
            raise ValueError("model.config.back: the objective back trains this part of an MCC, and the network has none")
        return BackSurfaceObjective(network, self, context)


class BackSurfaceObjective(nn.Module):
    """Batch: normalised `pixels` (B, 3, any, any); the point seen in each pixel of a map, `points` (B, n, n, 3), and whether there is one,
    `valid` (B, n, n); the last point on the same ray, `back` (B, n, n, 3), and its colour in 0..1, `back_colours` (B, n, n, 3)."""

    def __init__(self, model: MCC, settings: BackSettings, context: ObjectiveContext) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.settings = settings
        self._context = context
        self._part.requires_grad_(True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        valid, settings = require_tensor(batch, "valid").bool(), self.settings
        moved = augmentation(batch["draw"], scale=settings.scale, flip=settings.flip)
        images = moved.transform_images(pictures_in_unit_range(require_tensor(batch, "pixels"), self._context))
        seen, back = (
            moved.transform_seen(require_tensor(batch, name).masked_fill(~valid.unsqueeze(-1), 0.0)) for name in ("points", "back")
        )
        colours = require_tensor(batch, "back_colours")
        if moved.flip:
            valid, colours = valid.flip(2), colours.flip(2)
        predicted: BackSurface = self._part(images, seen, valid)
        # a sensor's error may put the seen point behind the true back; then there is nothing between
        thickness = ((back - seen).norm(dim=-1) * (back - seen)[..., 2].sign()).clamp(min=0)
        wrong = F.smooth_l1_loss(predicted.thickness, thickness, reduction="none", beta=settings.near)
        deep = _mean(wrong, valid)
        colour = _mean((predicted.colours - colours).abs().mean(dim=-1), valid)
        error = _mean((predicted.thickness - thickness).abs(), valid)
        return {
            "loss": deep + settings.colour * colour,
            "loss_thickness": deep.detach(),
            "loss_colour": colour.detach(),
            "error_thickness": error.detach(),
        }

    @property
    def _part(self) -> BackSurfaceNet:
        assert self.model.back is not None
        return self.model.back


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Average (B, n, n) over the valid pixels of each sample, then over samples, to a scalar."""
    counted = values.masked_fill(~valid, 0.0).flatten(1).sum(dim=1)
    return (counted / valid.flatten(1).sum(dim=1).clamp(min=1)).mean()
