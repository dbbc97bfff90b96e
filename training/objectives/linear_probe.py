"""Linear probing (appendix A.1 of arXiv 2111.06377): a linear classifier on frozen features, after a batch norm without scale and shift."""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.systems.vit.model import ViT
from training import collectives
from training.collectives import term_of_mean
from training.objectives.checks import require_model, require_tensor
from training.objectives.protocols import Batch, ObjectiveContext, ObjectiveSettings
from training.optim import ParameterGroup, group_by_decay
from training.recipe_settings import OptimiserSettings

EPS = 1e-6
MOMENTUM = 0.1
"""Share of the newest batch in the running statistics."""


class LinearProbeSettings(ObjectiveSettings):
    kind: Literal["linear_probe"] = "linear_probe"
    head_std: float = Field(default=0.01, gt=0)
    """Standard deviation of the head's first weights, truncated normal."""

    def build(self, model: nn.Module, context: ObjectiveContext) -> LinearProbeObjective:
        return LinearProbeObjective(require_model(self.kind, model, ViT), self)


class LinearProbeObjective(nn.Module):
    """Batch: normalised `pixels` (B, 3, S, S) and `label` int64 (B,).

    Statistics are those of the samples of all ranks. The network that is released has the batch norm in its head.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, model: ViT, settings: LinearProbeSettings | None = None) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        if not isinstance(model.head, nn.Linear) or model.config.distilled:
            raise ValueError("model.classes: a linear probe trains the one head of a classifier")
        model.head.requires_grad_(True)
        nn.init.trunc_normal_(self.head.weight, std=(settings or LinearProbeSettings()).head_std)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("running_mean", torch.zeros(model.config.features))
        self.register_buffer("running_var", torch.ones(model.config.features))

    @property
    def head(self) -> nn.Linear:
        assert isinstance(self.model.head, nn.Linear)
        return self.model.head

    def train(self, mode: bool = True) -> LinearProbeObjective:
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        label = require_tensor(batch, "label")
        with torch.no_grad():
            features = self.normalise(self.model(require_tensor(batch, "pixels")).features.float())
        logits = self.head(features).float()
        right = (logits.detach().argmax(dim=1) == label).float().mean()
        return {"loss": term_of_mean(F.cross_entropy(logits, label), len(label)), "accuracy": term_of_mean(right, len(label))}

    def normalise(self, features: Tensor) -> Tensor:
        """Normalise features (B, C) by the batch in training, which updates the running statistics, and by these in evaluation."""
        mean, variance = self.running_mean, self.running_var
        if self.training:
            everything = collectives.all_gather(features)
            mean, variance = everything.mean(dim=0), everything.var(dim=0, correction=0)
            self.running_mean.lerp_(mean, MOMENTUM)
            self.running_var.lerp_(everything.var(dim=0), MOMENTUM)
        return (features - mean) / (variance + EPS).sqrt()

    @torch.no_grad()
    def released_network(self) -> ViT:
        """Return a classifier with the batch norm folded into its head."""
        released = deepcopy(self.model)
        assert isinstance(released.head, nn.Linear)
        scale = (self.running_var + EPS).rsqrt()
        released.head.bias.sub_(released.head.weight @ (self.running_mean * scale))
        released.head.weight.mul_(scale)
        return released

    def parameter_groups(self, settings: OptimiserSettings) -> list[ParameterGroup]:
        return group_by_decay(self.head, lambda name, parameter: settings.weight_decay)
