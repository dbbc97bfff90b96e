"""Learning rates and parameter groups of MAE (arXiv 2111.06377, tables 8 and 9) as pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from models.systems.mae_st.model import VideoMAE
from models.systems.mavil.model import MAViL
from models.systems.vit.model import ViT
from training.recipe_settings import OptimiserSettings, ScheduleSettings

_BLOCK = re.compile(r"(?:audio\.|video\.)?blocks(?:_av)?\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:audio\.|video\.)?(cls_token|dist_token|pos_embed|patch_embed\.)")
_UNDECAYED = re.compile(r"(?:audio\.|video\.)?(cls_token|dist_token|pos_embed(\..*)?)")
"""Parameters of pictures, clips and spectrograms; MAViL has a half for each of the latter, and blocks for both."""


class ParameterGroup(TypedDict):
    """Group for torch's optimisers. Its learning rate is the schedule's times `lr_scale`. Names are for people."""

    params: list[nn.Parameter]
    names: list[str]
    weight_decay: float
    lr_scale: float


def warmup_cosine(epoch: float, *, lr: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """Return the learning rate at a fractional epoch: linear from 0 in the warm-up, then half a cosine down to `min_lr`."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    progress = _progress(epoch, warmup_epochs, epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def scheduled_lr(settings: ScheduleSettings, epoch: float, *, lr: float, epochs: float) -> float:
    """Return the learning rate at a fractional epoch of a phase whose peak is `lr`."""
    if settings.every == "epoch":
        epoch = math.floor(epoch) + 1
    if epoch < settings.warmup or settings.kind == "cosine":
        return warmup_cosine(epoch, lr=lr, min_lr=settings.min_lr, warmup_epochs=settings.warmup, epochs=epochs)
    if settings.kind == "constant":
        return lr
    return lr + (settings.min_lr - lr) * _progress(epoch, settings.warmup, epochs)


def _progress(epoch: float, warmup: float, epochs: float) -> float:
    """0 at the end of the warm-up, 1 at that of the phase; whole epochs may end behind it."""
    return min(1.0, (epoch - warmup) / (epochs - warmup)) if epochs > warmup else 1.0


def optimiser_of(groups: Sequence[ParameterGroup], settings: OptimiserSettings, lr: float) -> torch.optim.Optimizer:
    """Build the optimiser, with peak learning rate `lr`."""
    plain = [{name: value for name, value in group.items() if name != "names"} for group in groups]
    if settings.kind == "adamw":
        return torch.optim.AdamW(plain, lr=lr, betas=settings.betas, eps=settings.eps, fused=True)
    if settings.kind == "lars":
        return LARS(plain, lr=lr, momentum=settings.betas[0])
    return torch.optim.SGD(plain, lr=lr, momentum=settings.betas[0])


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


def pretraining_groups(model: nn.Module, weight_decay: float, *, decay_norms: bool = False) -> list[ParameterGroup]:
    """Return two groups: biases and other one-dimensional parameters do not decay. Frozen parameters, such as MAE's positions, are omitted.

    decay_norms: one-dimensional parameters other than biases decay too (`bias_wd` of MAE-ST).
    """

    def decay(name: str, parameter: nn.Parameter) -> float:
        return 0.0 if name.endswith(".bias") or (parameter.dim() == 1 and not decay_norms) else weight_decay

    return group_by_decay(model, decay)


def layer_decay_groups(
    model: ViT | VideoMAE | MAViL, *, layer_decay: float, weight_decay: float, scale_of: Callable[[str], float] = lambda name: 1.0
) -> list[ParameterGroup]:
    """Return groups for fine-tuning: each layer learns `layer_decay` times as fast as the next one; last norm and head at full rate.

    One-dimensional parameters, special tokens and the position table do not decay. MAViL's fusion blocks count from the
    bottom again, as published. scale_of: a further factor for the parameter of a name.
    """
    top = model.config.depth + 1

    def layer(name: str) -> int:
        block = _BLOCK.match(name)
        if block:
            return int(block[1]) + 1
        return 0 if _EMBEDDING.match(name) else top

    def decay(name: str, parameter: nn.Parameter) -> float:
        return 0.0 if parameter.dim() == 1 or _UNDECAYED.fullmatch(name) else weight_decay

    return group_by_decay(model, decay, lambda name: layer_decay ** (top - layer(name)) * scale_of(name))


_TRUST = 0.001
"""Length of the step of a matrix as a share of the matrix."""


class LARS(torch.optim.Optimizer):
    """LARS as MAE's linear probe uses it (arXiv 1708.03888); parameters of one dimension are neither decayed nor scaled."""

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
