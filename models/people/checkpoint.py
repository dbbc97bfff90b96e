"""Key tables and config fields that LART and PHALP's pose predictor share."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from models.checkpoints.family import ConfigFields, UnlikeFamily, shape_of

ENCODER_PREFIX = "encoder."
HEAD_DIM = 64
"""Channels of a head in the published sizes."""


def transformer_keys(upstream_prefix: str, prefix: str) -> dict[str, str]:
    return {
        f"{upstream_prefix}.layers.{{i}}.0.norm.*": f"{prefix}.{{i}}.norm1.*",
        f"{upstream_prefix}.layers.{{i}}.0.fn.to_qkv.*": f"{prefix}.{{i}}.attn.qkv.*",
        f"{upstream_prefix}.layers.{{i}}.0.fn.to_out.0.*": f"{prefix}.{{i}}.attn.proj.*",
        f"{upstream_prefix}.layers.{{i}}.1.norm.*": f"{prefix}.{{i}}.norm2.*",
        f"{upstream_prefix}.layers.{{i}}.1.fn.net.0.*": f"{prefix}.{{i}}.mlp.fc1.*",
        f"{upstream_prefix}.layers.{{i}}.1.fn.net.3.*": f"{prefix}.{{i}}.mlp.fc2.*",
    }


def with_encoder_prefix(keys: Mapping[str, str]) -> dict[str, str]:
    """Return the table with and without the prefix `encoder.`, which some files lack; export writes the first form."""
    return {**{f"{ENCODER_PREFIX}{key}": name for key, name in keys.items()}, **keys}


SHARED_KEYS = {
    "mask_token": "mask_token",
    "class_token": "class_token",
    "pose_shape_encoder.{i}.*": "pose_encoder.{i}.*",
    "conv_en.*": "conv_en.*",
    "conv_de.*": "conv_de.*",
    "smpl_head.0.fc1.*": "heads.regressor.fc1.*",
    "smpl_head.0.fc2.*": "heads.regressor.fc2.*",
    "smpl_head.0.*": "heads.regressor.readout.*",
    "smpl_head.0.decpose.*": "heads.regressor.readout.decpose.*",
    "smpl_head.0.decshape.*": "heads.regressor.readout.decshape.*",
    "smpl_head.0.deccam.*": "heads.regressor.readout.deccam.*",
    "loca_head.0.{i}.*": "heads.location.{i}.*",
    "action_head_ava.0.0.*": "heads.actions.*",
}


def shared_fields(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer the config fields that LART and the pose predictor share."""
    inner = shape_of(weights, "blocks.0.attn.qkv.weight", 2)[0] // 3
    hidden, _ = shape_of(weights, "blocks.0.mlp.fc1.weight", 2)
    actions, _ = shape_of(weights, "heads.actions.weight", 2)
    regressor, _ = shape_of(weights, "heads.regressor.fc1.weight", 2)
    heads = settings.get("heads") or _heads(weights, inner)
    if heads and inner % heads:
        raise UnlikeFamily(f"its attention has {inner} channels, which {heads} heads cannot share")
    return {
        "pose": feature_fields(weights, "pose_encoder"),
        "depth": 1 + max(int(match[1]) for key in weights if (match := re.match(r"blocks\.(\d+)\.", key))),
        "head_dim": inner // (heads or 1),
        "hidden": hidden,
        "actions": actions,
        "regressor_hidden": regressor,
        **({} if heads is None else {"heads": heads}),
    }


def _heads(weights: Mapping[str, Tensor], inner: int) -> int | None:
    """Infer the number of heads: width // 64. 1 if the output is not projected. None if neither can be inferred."""
    if "blocks.0.attn.proj.weight" not in weights:
        return 1
    heads = inner // HEAD_DIM if inner % HEAD_DIM == 0 else None
    if (heads or 1) == 1 and inner == shape_of(weights, "mask_token", 1)[0]:  # a single head as wide as the tokens has no projection
        raise UnlikeFamily("the number of heads cannot be inferred from its shapes: set it, as in --set heads=4")
    return heads


def feature_fields(weights: Mapping[str, Tensor], name: str) -> ConfigFields:
    """Return the config of an encoder, inferred from its first and last layer."""
    hidden, values = shape_of(weights, f"{name}.0.weight", 2)
    last = max(int(match[1]) for key in weights if (match := re.match(rf"{name}\.(\d+)\.", key)))
    return {"values": values, "hidden": hidden, "width": shape_of(weights, f"{name}.{last}.weight", 2)[0]}
