"""MViTv2 (arXiv 2112.01526) and MViT (2104.11227), trained on videos by SlowFast; also with the box head of AVA."""

from __future__ import annotations

from dataclasses import replace

from models.checkpoints.family import ConfigFields, Family, UnlikeFamily
from models.checkpoints.key_table import KeyTable
from models.systems.mvit import slowfast_config
from models.systems.mvit.model import PUBLISHED

KEYS = {
    **slowfast_config.END_KEYS,
    "cls_token": "cls_token",
    "pos_embed_class": "pos_embed.first",
    "blocks.{i}.attn.qkv.*": "blocks.{i}.attn.qkv.*",
    "blocks.{i}.attn.proj.*": "blocks.{i}.attn.proj.*",
    **{f"blocks.{{i}}.attn.{name}": f"blocks.{{i}}.attn.{name}" for name in slowfast_config.POOLING_KEYS},
    "blocks.{i}.attn.rel_pos_h": "blocks.{i}.attn.rel_pos_h",
    "blocks.{i}.attn.rel_pos_w": "blocks.{i}.attn.rel_pos_w",
    "blocks.{i}.attn.rel_pos_t": "blocks.{i}.attn.rel_pos_t",
    "blocks.{i}.norm1.*": "blocks.{i}.norm1.*",
    "blocks.{i}.norm2.*": "blocks.{i}.norm2.*",
    "blocks.{i}.mlp.fc1.*": "blocks.{i}.mlp.fc1.*",
    "blocks.{i}.mlp.fc2.*": "blocks.{i}.mlp.fc2.*",
    "blocks.{i}.proj.*": "blocks.{i}.proj.*",
    "blocks.{i}.gamma_1": "blocks.{i}.gamma_1",
    "blocks.{i}.gamma_2": "blocks.{i}.gamma_2",
}

SEPARATE_KEYS = {"blocks.{i}.attn.{q,k,v}.*" if "qkv" in theirs else theirs: ours for theirs, ours in KEYS.items()}


def fields_of(configuration: slowfast_config.Configuration) -> ConfigFields:
    """Read MViTConfig's fields from a configuration of SlowFast."""
    if slowfast_config.is_reversible(configuration):
        raise UnlikeFamily("its configuration says that it is reversible")
    mvit, boxes = configuration["MVIT"], configuration.get("DETECTION", {})
    pooling = {
        "bins": boxes.get("ROI_XFORM_RESOLUTION", 7),
        "scale": 1 / boxes.get("SPATIAL_SCALE_FACTOR", 16),
        "aligned": boxes.get("ALIGNED", True),
    }
    return {
        **slowfast_config.trunk_fields(configuration),
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
    config=lambda weights, settings: slowfast_config.published_fields(weights, settings, PUBLISHED),
    resized=slowfast_config.resize_positions,
    described=slowfast_config.make_describe(fields_of),
    preprocess=slowfast_config.preprocess_video,
    wrapper="model_state",
)

SEPARATE = replace(FAMILY, name="mvit_separate", table=KeyTable(SEPARATE_KEYS))
"""Family of checkpoints with q, k and v as three matrices."""
