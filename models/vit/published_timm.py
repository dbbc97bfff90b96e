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

from models.published.family import Family, Fields
from models.published.key_table import KeyTable
from models.published.model_config import ModelConfig
from models.vit import published
from models.vit.model import ViTConfig
from models.vit.published_transformers import scaled

KEY = "timm"
"""Key of a checkpoint's description under which `config.json` stands."""


def described(description: Mapping[str, Any]) -> Fields:
    """Fields of ViTConfig that `config.json` states. Raises ValueError that names one."""
    stated = ModelConfig(description[KEY])
    stated.require("global_pool", "token", "token")
    tag = stated.section("pretrained_cfg").content.get("tag") or ""
    return {
        **({"classes": 0} if stated.content.get("num_classes") == 0 else {}),
        **({"proportional_attention": False} if str(tag).split("_")[0] == "mae" else {}),  # pre-trained without labels, as MAE is
    }


def clip_described(description: Mapping[str, Any]) -> Fields:
    return {
        **described(description),
        "norm_eps": 1e-5,
        "pre_norm": True,
        "quick_gelu": "_quickgelu_" in description[KEY]["architecture"],
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

NETWORKS: Mapping[str, Family] = {
    r"vit_(tiny|small|base|large|huge)_patch(8|14|16|32)_\d+": PLAIN,
    r"deit_(tiny|small|base)(_distilled)?_patch16_\d+": DEIT,
    r"vit_(small|base|large)_patch14_dinov2": DINOV2,
    r"vit_(base|large|huge)_patch(14|16|32)_clip_(quickgelu_)?\d+": CLIP,
}
"""Pattern of `architecture` → the family that reads its weights."""


def family_of(architecture: str) -> Family | None:
    """None for a network that is none of NETWORKS."""
    return next((family for pattern, family in NETWORKS.items() if re.fullmatch(pattern, architecture)), None)
