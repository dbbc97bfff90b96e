"""MViTv2 (arXiv 2112.01526) and MViT (2104.11227), trained on videos by SlowFast; also with the box head of AVA;
and what all of SlowFast's families share, key names and the configurations that its training code writes next to the weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch.nn.functional as F
import yaml
from torch import Tensor

from models.bundle_schema import Preprocess
from models.checkpoints.family import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    KINETICS_MEAN,
    KINETICS_STD,
    ConfigFields,
    Family,
    KeyTable,
    UnlikeFamily,
    resize_and_crop,
)
from models.layers.patches import resize_table
from models.systems.mvit.model import PUBLISHED, Activation, MViTConfig
from models.systems.mvit.trunk import Positions, TrunkConfig
from models.systems.vit.checkpoint import BLOCK_KEYS

END_KEYS = {
    "pos_embed": "pos_embed.joint",
    "pos_embed_spatial": "pos_embed.spatial",
    "pos_embed_temporal": "pos_embed.temporal",
    "patch_embed.proj.*": "patch_embed.proj.*",
    "norm.*": "norm.*",
    "head.projection.*": "head.*",
}

POOLING_KEYS = ("pool_q.*", "pool_k.*", "pool_v.*", "norm_q.*", "norm_k.*", "norm_v.*")
"""Keys of poolings in attention, the same upstream and here."""

Configuration = Mapping[str, Any]
"""A configuration of SlowFast: sections of keys in capitals. Hand-written ones omit defaults."""

SUPPORTED_VALUES = {
    "MODE": "conv",
    "NORM": "layernorm",
    "POOL_FIRST": False,
    "NORM_STEM": False,
    "USE_FIXED_SINCOS_POS": False,
    "DROPOUT_RATE": 0.0,
}
"""Keys of the section MVIT with their only supported value; no published model has others."""


def trunk_fields(configuration: Configuration) -> ConfigFields:
    """Read the fields of `models.systems.mvit.trunk.TrunkConfig`. Raises ValueError for values that no model here supports."""
    data, mvit, model = configuration["DATA"], configuration["MVIT"], configuration["MODEL"]
    for key, value in SUPPORTED_VALUES.items():
        if mvit.get(key, value) != value:
            raise ValueError(f"MVIT.{key}: {mvit[key]!r} is not supported, only {value!r}")
    activation = model.get("HEAD_ACT", "softmax")
    if activation not in list(Activation):
        raise ValueError(f"MODEL.HEAD_ACT: {activation!r} is not supported, only {', '.join(Activation)}")
    kv_stride = mvit.get("POOL_KV_STRIDE_ADAPTIVE") or None
    return {
        "image_size": data["TRAIN_CROP_SIZE"],
        "frames": 1 if mvit.get("PATCH_2D", False) else data["NUM_FRAMES"],
        "channels": data.get("INPUT_CHANNEL_NUM", [3])[0],
        "classes": model["NUM_CLASSES"],
        "patch_kernel": mvit["PATCH_KERNEL"],
        "patch_stride": mvit["PATCH_STRIDE"],
        "patch_padding": mvit["PATCH_PADDING"],
        "width": mvit["EMBED_DIM"],
        "depth": mvit["DEPTH"],
        "heads": mvit["NUM_HEADS"],
        "width_growth": mvit.get("DIM_MUL", []),
        "head_growth": mvit.get("HEAD_MUL", []),
        "mlp_ratio": mvit.get("MLP_RATIO", 4.0),
        "qkv_bias": mvit.get("QKV_BIAS", True),
        "pool_kernel": mvit.get("POOL_KVQ_KERNEL") or None,
        "q_strides": mvit.get("POOL_Q_STRIDE") or [],
        "kv_stride": kv_stride,
        "kv_strides": [] if kv_stride else mvit.get("POOL_KV_STRIDE") or [],
        "positions": _positions_of_section(mvit),
        "drop_path": mvit.get("DROPPATH_RATE", 0.0),
        "dropout": model.get("DROPOUT_RATE", 0.0),
        "activation": activation,
    }


def make_describe(fields: Callable[[Configuration], ConfigFields]) -> Callable[[Mapping[str, Any]], ConfigFields]:
    """Return a family's `described`: a function that reads fields from the configuration next to the weights, if there is one."""

    def describe(description: Mapping[str, Any]) -> ConfigFields:
        if "cfg" not in description:
            return {}
        if not isinstance(description["cfg"], str):
            raise ValueError(f"cfg: a {type(description['cfg']).__name__} where text is needed")
        configuration = _parse(description["cfg"])
        try:
            return fields(configuration)
        except KeyError as error:
            raise ValueError(f"cfg: lacks {error.args[0]}") from error
        except (TypeError, AttributeError, IndexError, ZeroDivisionError) as error:
            raise ValueError(f"cfg: holds a value of the wrong kind ({error})") from error

    return describe


@lru_cache(maxsize=1)
def _parse(text: str) -> Configuration:
    """Parse a configuration. Cached, since each candidate family of a file parses it."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"cfg: not YAML ({error})") from error
    if not isinstance(content, dict) or not {"DATA", "MVIT", "MODEL"} <= content.keys():
        raise ValueError("cfg: not the configuration of an MViT, which has the sections DATA, MVIT and MODEL")
    return content


def is_reversible(configuration: Configuration) -> bool:
    return bool(configuration["MVIT"].get("REV", {}).get("ENABLE", False))


def published_fields(weights: Mapping[str, Tensor], settings: ConfigFields, sizes: Mapping[str, Any]) -> ConfigFields:
    """Return the fields of the published size that converted weights belong to, since weights do not determine strides; none if settings
    have strides.

    sizes: subclasses of TrunkConfig. Raises UnlikeFamily if neither helps.
    """
    kernel = weights.get("patch_embed.proj.weight")
    block_indices = [int(match[1]) for key in weights if (match := re.match(r"blocks\.(\d+)\.", key))]
    if kernel is None or not block_indices:
        raise UnlikeFamily("it lacks patch_embed.proj.weight or blocks")
    if "q_strides" in settings:
        return {}
    traits = (kernel.shape[0], kernel.dim() == 4, 1 + max(block_indices), _positions_of_weights(weights))
    for size in sizes.values():
        if traits == (size.width, size.images, size.depth, size.positions):
            classes = {"classes": weights["head.weight"].shape[0]} if "head.weight" in weights else {}
            return {field.name: getattr(size, field.name) for field in dataclasses.fields(size)} | classes
    raise UnlikeFamily(
        f"a width of {traits[0]} and {traits[2]} blocks do not match any published size, and no configuration next to them has the strides"
    )


def preprocess_video(size: int) -> Preprocess:
    """Return preprocessing as for Kinetics-400 at 224 px; the published MViTv2-L, at 312, uses the whole short side and ImageNet's
    colours."""
    if size == 312:
        return resize_and_crop(1.0, IMAGENET_MEAN, IMAGENET_STD, "bilinear")(size)
    return resize_and_crop(256 / 224, KINETICS_MEAN, KINETICS_STD, "bilinear")(size)


def resize_positions(weights: dict[str, Tensor], config: TrunkConfig) -> dict[str, Tensor]:
    """Resize position tables for a config of another size, as SlowFast does: space bicubically, time and relative positions linearly.

    Also resizes a joint table of images, which SlowFast would drop. Raises ValueError for a spatial grid that is not square.
    """
    return {name: _resize_table(name, table, config) for name, table in weights.items()}


def _resize_table(name: str, table: Tensor, config: TrunkConfig) -> Tensor:
    times, rows, columns = config.patch_grid
    relative = re.fullmatch(r"blocks\.(\d+)\.attn\.rel_pos_([hwt])", name)
    if table.dim() != (3 if relative is None else 2):
        return table
    if name == "pos_embed.spatial" or (name == "pos_embed.joint" and config.images):
        return resize_table(table, rows * columns, special=0 if name == "pos_embed.spatial" else config.special_tokens)
    if name == "pos_embed.temporal":
        return _interpolate_rows(table[0], times).unsqueeze(0)
    if relative is None or not isinstance(config, MViTConfig):
        return table
    space, time = config.relative_rows(int(relative[1]))
    return _interpolate_rows(table, time if relative[2] == "t" else space)


def _interpolate_rows(table: Tensor, rows: int) -> Tensor:
    """Interpolate rows linearly: (old, C) → (rows, C)."""
    if len(table) == rows:
        return table
    return F.interpolate(table.T.unsqueeze(0), size=rows, mode="linear", align_corners=False).squeeze(0).T


def _positions_of_weights(weights: Mapping[str, Tensor]) -> Positions:
    if "pos_embed.spatial" in weights:
        return Positions.SEPARATE
    return Positions.JOINT if "pos_embed.joint" in weights else Positions.NONE


def _positions_of_section(mvit: Mapping[str, Any]) -> Positions:
    if not mvit.get("USE_ABS_POS", True):
        return Positions.NONE
    return Positions.SEPARATE if mvit.get("SEP_POS_EMBED", False) else Positions.JOINT


KEYS = {
    **END_KEYS,
    "cls_token": "cls_token",
    "pos_embed_class": "pos_embed.first",
    **BLOCK_KEYS,
    **{f"blocks.{{i}}.attn.{name}": f"blocks.{{i}}.attn.{name}" for name in POOLING_KEYS},
    "blocks.{i}.attn.rel_pos_h": "blocks.{i}.attn.rel_pos_h",
    "blocks.{i}.attn.rel_pos_w": "blocks.{i}.attn.rel_pos_w",
    "blocks.{i}.attn.rel_pos_t": "blocks.{i}.attn.rel_pos_t",
    "blocks.{i}.proj.*": "blocks.{i}.proj.*",
    "blocks.{i}.gamma_1": "blocks.{i}.gamma_1",
    "blocks.{i}.gamma_2": "blocks.{i}.gamma_2",
}

SEPARATE_KEYS = {"blocks.{i}.attn.{q,k,v}.*" if "qkv" in theirs else theirs: ours for theirs, ours in KEYS.items()}


def fields_of(configuration: Configuration) -> ConfigFields:
    """Read MViTConfig's fields from a configuration of SlowFast."""
    if is_reversible(configuration):
        raise UnlikeFamily("its configuration says that it is reversible")
    mvit, boxes = configuration["MVIT"], configuration.get("DETECTION", {})
    pooling = {
        "bins": boxes.get("ROI_XFORM_RESOLUTION", 7),
        "scale": 1 / boxes.get("SPATIAL_SCALE_FACTOR", 16),
        "aligned": boxes.get("ALIGNED", True),
    }
    return {
        **trunk_fields(configuration),
        "class_token": mvit["CLS_EMBED_ON"],
        "relative_space": mvit.get("REL_POS_SPATIAL", False),
        "relative_time": mvit.get("REL_POS_TEMPORAL", False),
        "relative_zero": mvit.get("REL_POS_ZERO_INIT", False),
        "residual_pooling": mvit.get("RESIDUAL_POOLING", False),
        "expand_in_attention": mvit.get("DIM_MUL_IN_ATT", False),
        "layer_scale": mvit.get("LAYER_SCALE_INIT_VALUE") or None,
        "mean_pooling": mvit.get("USE_MEAN_POOLING", False),
        "boxes": pooling if boxes.get("ENABLE", False) else None,
    }


FAMILY = Family(
    name="mvit",
    architecture="mvit",
    table=KeyTable(KEYS),
    config=lambda weights, settings: published_fields(weights, settings, PUBLISHED),
    resized=resize_positions,
    described=make_describe(fields_of),
    preprocess=preprocess_video,
    wrapper="model_state",
)

SEPARATE = replace(FAMILY, name="mvit_separate", table=KeyTable(SEPARATE_KEYS))
"""Family of checkpoints with q, k and v as three matrices."""
