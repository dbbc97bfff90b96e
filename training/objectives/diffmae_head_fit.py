"""A last layer by regression: what DiffMAE's decoder says about patches at the start, read as well as a linear layer can."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.systems.diffmae.model import PredictionTarget
from training.objectives.checks import require_tensor
from training.objectives.diffmae import DiffMAEObjective
from training.objectives.protocols import Batch

RIDGE = 10.0
"""Added to the diagonal of the normal equations of some ten thousand patches."""


@torch.no_grad()
def fit_diffmae_head(objective: DiffMAEObjective, batches: Iterable[Batch]) -> None:
    """Set `decoder_pred`, in place, to the ridge regression of the targets on its input, at the times, masks and noise of the batches."""
    model = objective.model
    seen: list[Tensor] = []
    hook = model.decoder_norm.register_forward_hook(lambda _module, _inputs, normed: seen.append(normed))
    size = model.decoder_pred.in_features + 1  # the last is the bias
    products = RIDGE * torch.eye(size, dtype=torch.float64)
    moments = torch.zeros(size, model.decoder_pred.out_features, dtype=torch.float64)
    try:
        for batch in batches:
            drawn = objective.draw_inputs(batch["draw"])
            pixels, split, t = require_tensor(batch, objective.input), drawn.split, drawn.t
            x0 = model.targets(pixels, split)
            model.predict(model.config.schedule.add_noise(x0, t, drawn.noise), t, model.encode(pixels, split))
            real = torch.ones_like(split.masked, dtype=torch.bool) if split.masked_size is None else split.masked_size.squeeze(-1) > 0
            features = F.pad(seen.pop()[real].double(), (0, 1), value=1.0)  # (patches, C + 1)
            products += features.T @ features
            moments += features.T @ (x0 if model.config.target is PredictionTarget.X0 else drawn.noise)[real].double()
    finally:
        hook.remove()
    weights = torch.linalg.solve(products, moments).float()
    model.decoder_pred.weight.copy_(weights[:-1].T)
    model.decoder_pred.bias.copy_(weights[-1])
