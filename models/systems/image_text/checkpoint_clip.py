"""CLIP (arXiv 2103.00020) in the layout of transformers: both towers, or the image tower alone.

Tables are derived from the names and shapes of the library's tensors, fields from the documentation of its configuration classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.family import ConfigFields, Family, KeyTable, resize_and_crop, shape_of
from models.checkpoints.hf_config import PROCESSOR, HFConfig, prepared_size
from models.checkpoints.hf_image_processor import CLIP_MEAN, CLIP_STD
from models.systems.image_text.checkpoint_common import HEAD_FIELDS, resize_positions, tower_fields
from models.systems.vit.checkpoint import resize_position_table, vit_config


def block_keys(upstream: str, prefix: str) -> dict[str, str]:
    layer, block = f"{upstream}encoder.layers.{{i}}", f"{prefix}blocks.{{i}}"
    return {
        f"{layer}.layer_norm1.*": f"{block}.norm1.*",
        f"{layer}.self_attn.{{q,k,v}}_proj.*": f"{block}.attn.qkv.*",
        f"{layer}.self_attn.out_proj.*": f"{block}.attn.proj.*",
        f"{layer}.layer_norm2.*": f"{block}.norm2.*",
        f"{layer}.mlp.fc1.*": f"{block}.mlp.fc1.*",
        f"{layer}.mlp.fc2.*": f"{block}.mlp.fc2.*",
    }


def image_tower_keys(upstream: str, prefix: str) -> dict[str, str]:
    return {
        f"{upstream}embeddings.class_embedding": f"{prefix}cls_token",
        f"{upstream}embeddings.position_embedding.weight": f"{prefix}pos_embed",
        f"{upstream}embeddings.patch_embedding.*": f"{prefix}patch_embed.proj.*",
        f"{upstream}pre_layrnorm.*": f"{prefix}norm_pre.*",
        **block_keys(upstream, prefix),
        f"{upstream}post_layernorm.*": f"{prefix}norm.*",
    }


KEYS = {
    **image_tower_keys("vision_model.", "vision."),
    "text_model.embeddings.token_embedding.weight": "text.token_embed.weight",
    "text_model.embeddings.position_embedding.weight": "text.pos_embed",
    **block_keys("text_model.", "text."),
    "text_model.final_layer_norm.*": "text.norm.*",
    "visual_projection.weight": "vision_projection.weight",
    "text_projection.weight": "text_projection.weight",
    "logit_scale": "logit_scale",
}

POSITION_IDS = "embeddings.position_ids"
"""Key of 0, 1, 2, …: a buffer that later versions of the library no longer save."""
LEGACY_END = 2
"""`eos_token_id` of early configs, in which the highest id of a text is its end."""


def add_batch_axes(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Reshape tokens and tables to batches of one, and give patches a bias of zeros, which CLIP's lack."""
    weights = {key: value for key, value in published.items() if not key.endswith(POSITION_IDS)}
    for key, value in published.items():
        if key.endswith("embeddings.class_embedding"):
            weights[key] = value.view(1, 1, -1)
        if key.endswith("embeddings.position_embedding.weight"):
            weights[key] = value.unsqueeze(0)
        if key.endswith("embeddings.patch_embedding.weight"):
            weights.setdefault(key.replace("weight", "bias"), torch.zeros(len(value), dtype=value.dtype))
    return weights


def config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    return {
        **tower_fields(weights, settings),
        "text_length": shape_of(weights, "text.pos_embed", 3)[1],
        "joint_width": shape_of(weights, "vision_projection.weight", 2)[0],
    }


def describe_vision(config: HFConfig, description: Mapping[str, Any]) -> ConfigFields:
    config.require_colour()
    size, processor_size = config.side("image_size", 224), prepared_size(description)
    if processor_size not in (None, size):
        raise config.refusal("image_size", size, f"{processor_size}, the pixels that {description[PROCESSOR].source} makes")
    return {
        "image_size": size,
        "depth": config.integer("num_hidden_layers", 12),
        "heads": config.integer("num_attention_heads", 12),
        "norm_eps": config.number("layer_norm_eps", 1e-5),
        **config.activation("quick_gelu"),
    }


def describe_clip(description: Mapping[str, Any]) -> ConfigFields:
    """Read the fields of CLIPConfig that `config.json` declares and weights do not determine."""
    config = HFConfig.from_description(description)
    vision, text = (_section(config, name) for name in ("vision_config", "text_config"))
    vocabulary, end = text.integer("vocab_size", 49408), text.integer("eos_token_id", 49407)
    return {
        **describe_vision(vision, description),
        "text_depth": text.integer("num_hidden_layers", 12),
        "text_heads": text.integer("num_attention_heads", 8),
        "text_norm_eps": text.number("layer_norm_eps", 1e-5),
        **{f"text_{name}": value for name, value in text.activation("quick_gelu").items()},
        "end_of_text": vocabulary - 1 if end == LEGACY_END else end,
    }


def _section(config: HFConfig, name: str) -> HFConfig:
    """Return a tower's section of the config; early files repeat it under a second name, which takes precedence."""
    section = config.section(name)
    return replace(section, content={**section.content, **config.section(f"{name}_dict").content})


CLIP = Family(
    name="transformers CLIP",
    architecture="clip",
    table=KeyTable(KEYS),
    config=config,
    described=describe_clip,
    clean=add_batch_axes,
    resized=resize_positions,
    head_fields=HEAD_FIELDS,
    preprocess=resize_and_crop(1.0, CLIP_MEAN, CLIP_STD),
)

CLIP_VISION = Family(
    name="transformers CLIP image tower",
    architecture="vit",
    table=KeyTable({**image_tower_keys("vision_model.", ""), **image_tower_keys("", "")}),
    config=lambda weights, settings: {"classes": 0, **vit_config(weights, settings)},
    described=lambda description: describe_vision(HFConfig.from_description(description), description),
    clean=add_batch_axes,
    resized=resize_position_table,
    defaults={"pre_norm": True, "proportional_attention": True},
    preprocess=resize_and_crop(1.0, CLIP_MEAN, CLIP_STD),
)
