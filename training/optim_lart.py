"""LART's learning rates and parameter groups (section 4 of arXiv 2304.01199, and what its code does), as pure functions.

No recorded case covers them. Both stages use AdamW with betas (0.9, 0.95) and clip gradients at 2.
"""

from __future__ import annotations

from models.systems.lart.model import LART
from training.optim import ParameterGroup, group_by_decay

FIRST_LAYER = ("mask_token", "class_token", "pos_embed", "pose_encoder.", "joint_encoder.", "appearance_encoder.")


def pretraining_groups(model: LART, weight_decay: float = 0.05) -> list[ParameterGroup]:
    """Return one group: all parameters decay."""
    return group_by_decay(model, lambda name, parameter: weight_decay)


def finetuning_groups(model: LART, *, layer_decay: float = 0.95, weight_decay: float = 0.05) -> list[ParameterGroup]:
    """Return groups: the first layer learns `layer_decay`^(depth + 1) times as fast; one-dimensional parameters do not decay.

    The published rule looks for blocks under another name than they have, so that they learn at full rate, whatever their depth.
    """
    groups = group_by_decay(
        model,
        lambda name, parameter: 0.0 if parameter.dim() == 1 else weight_decay,
        lambda name: layer_decay ** (model.config.depth + 1) if name.startswith(FIRST_LAYER) else 1.0,
    )
    return sorted(groups, key=lambda group: (group["lr_scale"], group["weight_decay"]))
