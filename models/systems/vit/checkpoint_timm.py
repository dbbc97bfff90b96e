"""Vision transformers of timm as they are on the hub: `config.json` names the network, so the family need not be set.

Properties of networks are taken from those that the library builds; its files have neither epsilons nor activations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.family import ConfigFields, Family, KeyTable
from models.checkpoints.hf_config import TIMM, HFConfig
from models.systems.vit import checkpoint as published
from models.systems.vit.checkpoint_transformers import fold_layer_scale
from models.systems.vit.model import ViTConfig

CLIP_WIDTHS = {"base": 512, "large": 768, "huge": 1024}
"""Width of the joint space that CLIP's towers were trained with, by size: such a file declares it as `num_classes`."""
FINE_TUNED_TAG = "_ft_"
"""Part of the tags of weights that were fine-tuned for classification."""


def describe(description: Mapping[str, Any]) -> ConfigFields:
    """Read the fields of ViTConfig that `config.json` declares. Raises ValueError that names one."""
    config = HFConfig(description[TIMM])
    config.require("global_pool", "token", "token")
    tag = _weights_tag(description[TIMM])
    return {
        **({"classes": 0} if config.content.get("num_classes") == 0 else {}),
        **({"proportional_attention": False} if tag.split("_")[0] == "mae" else {}),  # pre-trained without labels, as MAE is
    }


def describe_clip(description: Mapping[str, Any]) -> ConfigFields:
    return {
        **describe(description),
        "norm_eps": 1e-5,
        "pre_norm": True,
        "quick_gelu": "_quickgelu_" in description[TIMM]["architecture"],
    }


def add_patch_bias(weights: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Add a bias of zeros to patches, which CLIP's lack."""
    return published.resize_position_table({**weights, "patch_embed.proj.bias": torch.zeros(config.width)}, config)


PLAIN = replace(published.TIMM, described=describe)

DEIT = replace(published.DEIT, described=describe)

DINOV2 = replace(
    PLAIN,
    name="timm DINOv2",
    table=KeyTable({**published.TIMM_KEYS, "blocks.{i}.ls1.gamma": "blocks.{i}.ls1.gamma", "blocks.{i}.ls2.gamma": "blocks.{i}.ls2.gamma"}),
    resized=fold_layer_scale,
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
    described=describe_clip,
    resized=add_patch_bias,
)

CLIP_TOWER = replace(
    CLIP,
    name="timm CLIP image tower",
    clean=lambda published: {key: value for key, value in published.items() if not key.startswith("head.")},
    described=lambda description: {**describe_clip(description), "classes": 0},
)
"""Family of towers pre-trained with texts, without their head, a projection into the joint space: `num_classes=0` in the library."""

NETWORKS: Mapping[str, Family] = {
    r"vit_(tiny|small|base|large|huge)_patch(8|14|16|32)_\d+": PLAIN,
    r"deit_(tiny|small|base)(_distilled)?_patch16_\d+": DEIT,
    r"vit_(small|base|large)_patch14_dinov2": DINOV2,
    r"vit_(base|large|huge)_patch(14|16|32)_clip_(quickgelu_)?\d+": CLIP,
}
"""Pattern of `architecture` → the family of its weights."""


def find_family(config: Mapping[str, Any]) -> Family | None:
    """Return the family of a network; None if it is not one of NETWORKS."""
    matches = ((family, re.fullmatch(pattern, config["architecture"])) for pattern, family in NETWORKS.items())
    family, match = next(((family, match) for family, match in matches if match), (None, None))
    if family is CLIP and match is not None and config.get("num_classes") == CLIP_WIDTHS[match[1]]:
        return CLIP if FINE_TUNED_TAG in _weights_tag(config) or not _weights_tag(config) else CLIP_TOWER
    return family


def _weights_tag(config: Mapping[str, Any]) -> str:
    """Return the name of the weights; empty if a config has none."""
    cfg = config.get("pretrained_cfg")
    return str(cfg.get("tag") or "") if isinstance(cfg, Mapping) else ""
