"""Parameter groups by a rule of weight decay."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from training.optim import ParameterGroup


def by_decay(model: nn.Module, decay: Callable[[str, nn.Parameter], float]) -> list[ParameterGroup]:
    """The parameters that learn, one group for each weight decay that `decay` gives by name."""
    groups: dict[float, ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        value = decay(name, parameter)
        group = groups.setdefault(value, ParameterGroup(params=[], names=[], weight_decay=value, lr_scale=1.0))
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
