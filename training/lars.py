"""LARS as MAE's linear probe uses it (arXiv 1708.03888): the step of a matrix is as long as a share of the matrix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_TRUST = 0.001


class LARS(torch.optim.Optimizer):
    """Momentum; parameters of one dimension are neither decayed nor scaled."""

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                change = parameter.grad
                if parameter.dim() > 1:
                    change = _scale(change + group["weight_decay"] * parameter, parameter)
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                parameter.sub_(momentum.mul_(group["momentum"]).add_(change), alpha=group["lr"])


def _scale(change: Tensor, parameter: Tensor) -> Tensor:
    """Scale a step by the trust ratio; zero parameters and zero steps stay unchanged."""
    size, step = parameter.norm(), change.norm()
    return change * torch.where((size > 0) & (step > 0), _TRUST * size / step, torch.ones_like(size))
