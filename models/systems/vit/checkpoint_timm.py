"""Vision transformers of timm as they lie on the hub: `config.json` names the network, so that nobody has to say whose keys these are.

What the names mean is read off the networks that the library builds; its files hold neither epsilons nor activations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.family import ConfigFields, Family
from models.checkpoints.hf_config import TIMM, HFConfig
from models.checkpoints.key_table import KeyTable
from models.systems.vit import checkpoint as published
from models.systems.vit.checkpoint_transformers import scaled
from models.systems.vit.model import ViTConfig

PROJECTIONS = {"base": 512, "large": 768, "huge": 1024}
"""Width of the space of images and texts that CLIP's towers were trained with, by size: such a file states it as `num_classes`."""
TUNED = "_ft_"
"""Part of the tags of weights that were fine-tuned to classify."""


def described(description: Mapping[str, Any]) -> ConfigFields:
    """Fields of ViTConfig that `config.json` states. Raises ValueError that names one."""
    stated = HFConfig(description[TIMM])
    stated.require("global_pool", "token", "token")
    tag = _tag(description[TIMM])
    return {
        **({"classes": 0} if stated.content.get("num_classes") == 0 else {}),
        **({"proportional_attention": False} if tag.split("_")[0] == "mae" else {}),  # pre-trained without labels, as MAE is
    }


def clip_described(description: Mapping[str, Any]) -> ConfigFields:
    return {
        **described(description),
        "norm_eps": 1e-5,
        "pre_norm": True,
        "quick_gelu": "_quickgelu_" in description[TIMM]["architecture"],
    }


def with_bias(weights: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """CLIP's patches have no bias: zeros are the same."""
    return published.resized({**weights, "patch_embed.proj.bias": torch.zeros(config.width)}, config)


PLAIN = replace(published.TIMM, described=described)

DEIT = replace(published.DEIT, described=described)

DINOV2 = replace(
    PLAIN,
    name="timm DINOv2",
    table=KeyTable({**published.TIMM_KEYS, "blocks.{i}.ls1.gamma": "blocks.{i}.ls1.gamma", "blocks.{i}.ls2.gamma": "blocks.{i}.ls2.gamma"}),
    resized=scaled,
)

CLIP = replace(
    PLAIN,
    name="timm CLIP",
    table=KeyTable(
        {
            **{key: ours for key, ours in published.TIMM_KEYS.items() if not key.startswith("patch_embed.")},
            "patch_embed.proj.weight": "patch_embed.proj.weight",
            "norm_pre.*": "norm_pre.*",
        }
    ),
    described=clip_described,
    resized=with_bias,
)

CLIP_TOWER = replace(
    CLIP,
    name="timm CLIP image tower",
    tidy=lambda published: {key: value for key, value in published.items() if not key.startswith("head.")},
    described=lambda description: {**clip_described(description), "classes": 0},
)
"""Tower pre-trained with texts: its head projects into their space. It is left out, as `num_classes=0` does in the library."""

NETWORKS: Mapping[str, Family] = {
    r"vit_(tiny|small|base|large|huge)_patch(8|14|16|32)_\d+": PLAIN,
    r"deit_(tiny|small|base)(_distilled)?_patch16_\d+": DEIT,
    r"vit_(small|base|large)_patch14_dinov2": DINOV2,
    r"vit_(base|large|huge)_patch(14|16|32)_clip_(quickgelu_)?\d+": CLIP,
}
"""Pattern of `architecture` → the family that reads its weights."""


def family_of(config: Mapping[str, Any]) -> Family | None:
    """None for a network that is none of NETWORKS."""
    matches = ((family, re.fullmatch(pattern, config["architecture"])) for pattern, family in NETWORKS.items())
    family, match = next(((family, match) for family, match in matches if match), (None, None))
    if family is CLIP and match is not None and config.get("num_classes") == PROJECTIONS[match[1]]:
        return CLIP if TUNED in _tag(config) or not _tag(config) else CLIP_TOWER
    return family


def _tag(config: Mapping[str, Any]) -> str:
    """The name of the weights; empty where a config states none."""
    cfg = config.get("pretrained_cfg")
    return str(cfg.get("tag") or "") if isinstance(cfg, Mapping) else ""
