"""LART's learning rates and parameter groups (section 4 of arXiv 2304.01199, and what its code does), as pure functions.

No recorded case covers them. Both stages use AdamW with betas (0.9, 0.95) and clip gradients at 2.
"""

from __future__ import annotations

from itertools import groupby

from models.systems.lart.model import LART
from training.optim import ParameterGroup

FIRST_LAYER = ("mask_token", "class_token", "pos_embed", "pose_encoder.", "joint_encoder.", "appearance_encoder.")


def pretraining_groups(model: LART, weight_decay: float = 0.05) -> list[ParameterGroup]:
    """Return one group: all parameters decay."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    names, parameters = [name for name, _ in named], [parameter for _, parameter in named]
    return [ParameterGroup(params=parameters, names=names, weight_decay=weight_decay, lr_scale=1.0)]


def finetuning_groups(model: LART, *, layer_decay: float = 0.95, weight_decay: float = 0.05) -> list[ParameterGroup]:
    """Tokens, positions and encoders learn `layer_decay`^(depth + 1) times as fast as all else; one-dimensional parameters do not decay.

    The published rule looks for blocks under another name than they have, so they learn at full rate, whatever their depth.
    """
    slow = layer_decay ** (model.config.depth + 1)

    def settings(name: str) -> tuple[float, float]:
        parameter = model.get_parameter(name)
        return slow if name.startswith(FIRST_LAYER) else 1.0, 0.0 if parameter.dim() == 1 else weight_decay

    trained = sorted((name for name, parameter in model.named_parameters() if parameter.requires_grad), key=settings)
    return [
        ParameterGroup(params=[model.get_parameter(name) for name in names], names=names, weight_decay=decay, lr_scale=scale)
        for (scale, decay), members in groupby(trained, key=settings)
        for names in [list(members)]
    ]
