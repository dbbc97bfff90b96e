"""SigLIP (arXiv 2303.15343) in the layout of transformers: both towers, or its image tower alone or under a classifier.

Tables are derived from the names and shapes of the library's tensors, fields from the documentation of its configuration classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.bundle_schema import Preprocess
from models.checkpoints.family import ConfigFields, Family, KeyTable, depth_of, shape_of, squeeze
from models.checkpoints.hf_config import HFConfig
from models.checkpoints.hf_image_processor import HALF
from models.systems.image_text.checkpoint_clip import add_batch_axes, block_keys, describe_vision
from models.systems.image_text.checkpoint_common import HEAD_FIELDS
from models.systems.vit.checkpoint import resize_position_table, vit_config
from models.systems.vit.model import Pool

DEFAULTS = {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh", "patch_size": 16}
"""Defaults of the configuration class that differ from CLIP's."""
GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh")


def image_tower_keys(upstream: str, prefix: str = "") -> dict[str, str]:
    return {
        f"{upstream}embeddings.position_embedding.weight": f"{prefix}pos_embed",
        f"{upstream}embeddings.patch_embedding.*": f"{prefix}patch_embed.proj.*",
        **block_keys(upstream, prefix),
        f"{upstream}post_layernorm.*": f"{prefix}norm.*",
    }


def head_keys(upstream: str, prefix: str = "") -> dict[str, str]:
    """Return the keys of the attention pooling head. q, k and v are one matrix upstream and two here: `split_and_resize` divides it."""
    pool = f"{prefix}attn_pool"
    return {
        f"{upstream}head.probe": f"{pool}.query",
        f"{upstream}head.attention.in_proj_weight": f"{pool}.qkv.weight",
        f"{upstream}head.attention.in_proj_bias": f"{pool}.qkv.bias",
        f"{upstream}head.attention.out_proj.*": f"{pool}.proj.*",
        f"{upstream}head.layernorm.*": f"{pool}.norm.*",
        f"{upstream}head.mlp.fc1.*": f"{pool}.mlp.fc1.*",
        f"{upstream}head.mlp.fc2.*": f"{pool}.mlp.fc2.*",
    }


PAIR_KEYS = {
    **image_tower_keys("vision_model.", "vision."),
    **head_keys("vision_model.", "vision."),
    "text_model.embeddings.token_embedding.weight": "text.token_embed.weight",
    "text_model.embeddings.position_embedding.weight": "text.pos_embed",
    **block_keys("text_model.", "text."),
    "text_model.final_layer_norm.*": "text.norm.*",
    "text_model.head.*": "text_projection.*",
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
}


def split_and_resize(weights: dict[str, Tensor], config: Any, prefix: str = "") -> dict[str, Tensor]:
    """Split the pooling head's matrix and resize positions. prefix: of the image tower's names."""
    pool, table = f"{prefix}attn_pool", f"{prefix}pos_embed"
    split_weights = {key: value for key, value in weights.items() if not key.startswith(f"{pool}.qkv.")}
    for name in ("weight", "bias"):
        if (matrix := weights.get(f"{pool}.qkv.{name}")) is not None:
            split_weights[f"{pool}.q.{name}"], split_weights[f"{pool}.kv.{name}"] = matrix[: config.width], matrix[config.width :]
    return split_weights | {table: resize_position_table({"pos_embed": split_weights[table]}, config)["pos_embed"]}


def drop_head(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Drop the pooling head, which a classifier's file may contain although it uses the mean of the patches."""
    return {key: value for key, value in add_batch_axes(published).items() if ".head." not in key}


def describe_encoder(description: Mapping[str, Any]) -> ConfigFields:
    config = HFConfig.from_description(description)
    config.require("vision_use_head", True, True)
    return _describe_image_tower(config, description)


def describe_classifier(description: Mapping[str, Any]) -> ConfigFields:
    return _describe_image_tower(HFConfig.from_description(description).section("vision_config"), description)


def describe_pair(description: Mapping[str, Any]) -> ConfigFields:
    config = HFConfig.from_description(description)
    vision, text = config.section("vision_config"), config.section("text_config")
    vision.require("vision_use_head", True, True)
    return {
        **_drop_quick_gelu(_describe_image_tower(vision, description)),
        "text_depth": text.integer("num_hidden_layers", 12),
        "text_heads": text.integer("num_attention_heads", 12),
        "text_norm_eps": text.number("layer_norm_eps", 1e-6),
        "text_tanh_gelu": text.activation("gelu_pytorch_tanh", GELU)["tanh_gelu"],
        "padding": text.index("pad_token_id", 1),
    }


def pair_config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    vision_weights = {key.removeprefix("vision."): value for key, value in weights.items() if key.startswith("vision.")}
    vision = vit_config(vision_weights, settings)
    vocabulary, text_width = shape_of(weights, "text.token_embed.weight", 2)
    return {
        **{name: vision[name] for name in ("image_size", "patch_size", "width", "depth", "mlp_ratio")},
        "vocabulary": vocabulary,
        "text_width": text_width,
        "text_depth": depth_of(weights, "text.blocks"),
        "text_hidden": shape_of(weights, "text.blocks.0.mlp.fc1.weight", 2)[0],
        "text_length": shape_of(weights, "text.pos_embed", 3)[1],
        "joint_width": shape_of(weights, "text_projection.weight", 2)[0],
    }


def _describe_image_tower(config: HFConfig, description: Mapping[str, Any]) -> ConfigFields:
    with_defaults = HFConfig(DEFAULTS | dict(config.content), config.source)
    fields = describe_vision(with_defaults, description)
    return {**fields, "cut_edge": fields["image_size"] % with_defaults.integer("patch_size", 16) != 0}


def _drop_quick_gelu(fields: ConfigFields) -> ConfigFields:
    """Drop a field that a pair's config lacks; only activations of `GELU` are accepted."""
    return {name: value for name, value in fields.items() if name != "quick_gelu"}


def preprocess(size: int) -> Preprocess:
    return squeeze(size).model_copy(update={"interpolation": "bicubic", "mean": HALF, "std": HALF})


VISION = Family(
    name="transformers SigLIP image tower",
    architecture="vit",
    table=KeyTable({**image_tower_keys("vision_model."), **head_keys("vision_model."), **image_tower_keys(""), **head_keys("")}),
    config=lambda weights, settings: {"classes": 0, **vit_config(weights, settings)},
    described=describe_encoder,
    clean=add_batch_axes,
    resized=split_and_resize,
    defaults={"pool": Pool.ATTENTION, "proportional_attention": True},
    preprocess=preprocess,
)

PAIR = Family(
    name="transformers SigLIP",
    architecture="siglip",
    table=KeyTable(PAIR_KEYS),
    config=pair_config,
    described=describe_pair,
    clean=add_batch_axes,
    resized=lambda weights, config: split_and_resize(weights, config, "vision."),
    head_fields=HEAD_FIELDS,
    preprocess=preprocess,
)

CLASSIFIER = Family(
    name="transformers SigLIP classifier",
    architecture="vit",
    table=KeyTable({**image_tower_keys("vision_model."), "classifier.*": "head.*"}),
    config=vit_config,
    described=describe_classifier,
    clean=drop_head,
    resized=resize_position_table,
    defaults={"pool": Pool.NORM_MEAN, "proportional_attention": True},
    preprocess=preprocess,
)
