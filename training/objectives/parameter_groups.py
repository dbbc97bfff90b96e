"""Parameter groups by a rule of weight decay."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from training.optim import ParameterGroup


def group_by_decay(
    model: nn.Module, decay: Callable[[str, nn.Parameter], float], scale: Callable[[str], float] = lambda name: 1.0
) -> list[ParameterGroup]:
    """Group trained parameters by weight decay and learning rate scale, which are functions of the name."""
    groups: dict[tuple[float, float], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        key = (decay(name, parameter), scale(name))
        group = groups.setdefault(key, ParameterGroup(params=[], names=[], weight_decay=key[0], lr_scale=key[1]))
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
