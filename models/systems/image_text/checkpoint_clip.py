"""CLIP (arXiv 2103.00020) in the layout of transformers: both towers, or the image tower alone.

Tables are worked out from the names and shapes of the library's tensors, fields from the documentation of its configuration classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.family import ConfigFields, Family, resize_and_crop, shape_of
from models.checkpoints.hf_config import PROCESSOR, HFConfig, prepared_size
from models.checkpoints.hf_image_processor import CLIP_MEAN, CLIP_STD
from models.checkpoints.key_table import KeyTable
from models.systems.image_text.checkpoint_common import HEAD_FIELDS, resize_positions, tower_fields
from models.systems.vit.checkpoint import resized, vit_config


def blocks(theirs: str, ours: str) -> dict[str, str]:
    layer, block = f"{theirs}encoder.layers.{{i}}", f"{ours}blocks.{{i}}"
    return {
        f"{layer}.layer_norm1.*": f"{block}.norm1.*",
        f"{layer}.self_attn.{{q,k,v}}_proj.*": f"{block}.attn.qkv.*",
        f"{layer}.self_attn.out_proj.*": f"{block}.attn.proj.*",
        f"{layer}.layer_norm2.*": f"{block}.norm2.*",
        f"{layer}.mlp.fc1.*": f"{block}.mlp.fc1.*",
        f"{layer}.mlp.fc2.*": f"{block}.mlp.fc2.*",
    }


def image_tower(theirs: str, ours: str) -> dict[str, str]:
    return {
        f"{theirs}embeddings.class_embedding": f"{ours}cls_token",
        f"{theirs}embeddings.position_embedding.weight": f"{ours}pos_embed",
        f"{theirs}embeddings.patch_embedding.*": f"{ours}patch_embed.proj.*",
        f"{theirs}pre_layrnorm.*": f"{ours}norm_pre.*",
        **blocks(theirs, ours),
        f"{theirs}post_layernorm.*": f"{ours}norm.*",
    }


KEYS = {
    **image_tower("vision_model.", "vision."),
    "text_model.embeddings.token_embedding.weight": "text.token_embed.weight",
    "text_model.embeddings.position_embedding.weight": "text.pos_embed",
    **blocks("text_model.", "text."),
    "text_model.final_layer_norm.*": "text.norm.*",
    "visual_projection.weight": "vision_projection.weight",
    "text_projection.weight": "text_projection.weight",
    "logit_scale": "logit_scale",
}

POSITION_IDS = "embeddings.position_ids"
"""0, 1, 2, …: a buffer that later versions of the library no longer save."""
OLD_END = 2
"""`eos_token_id` of early configs, in which the highest id of a text is its end."""


def with_axes(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tokens and tables as batches of one, and patches with a bias, which CLIP's lack: zeros are the same."""
    found = {key: value for key, value in published.items() if not key.endswith(POSITION_IDS)}
    for key, value in published.items():
        if key.endswith("embeddings.class_embedding"):
            found[key] = value.view(1, 1, -1)
        if key.endswith("embeddings.position_embedding.weight"):
            found[key] = value.unsqueeze(0)
        if key.endswith("embeddings.patch_embedding.weight"):
            found.setdefault(key.replace("weight", "bias"), torch.zeros(len(value), dtype=value.dtype))
    return found


def config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """The fields of CLIPConfig that weights tell."""
    return {
        **tower_fields(weights, settings),
        "text_length": shape_of(weights, "text.pos_embed", 3)[1],
        "joint_width": shape_of(weights, "vision_projection.weight", 2)[0],
    }


def vision_described(stated: HFConfig, description: Mapping[str, Any]) -> ConfigFields:
    stated.require_colour()
    size, prepared = stated.side("image_size", 224), prepared_size(description)
    if prepared not in (None, size):
        raise stated.refusal("image_size", size, f"{prepared}, the pixels that {description[PROCESSOR].source} makes")
    return {
        "image_size": size,
        "depth": stated.integer("num_hidden_layers", 12),
        "heads": stated.integer("num_attention_heads", 12),
        "norm_eps": stated.number("layer_norm_eps", 1e-5),
        **stated.activation("quick_gelu"),
    }


def described(description: Mapping[str, Any]) -> ConfigFields:
    """Fields of CLIPConfig that `config.json` states and weights do not tell."""
    whole = HFConfig.of(description)
    vision, text = (_section(whole, name) for name in ("vision_config", "text_config"))
    vocabulary, end = text.integer("vocab_size", 49408), text.integer("eos_token_id", 49407)
    return {
        **vision_described(vision, description),
        "text_depth": text.integer("num_hidden_layers", 12),
        "text_heads": text.integer("num_attention_heads", 8),
        "text_norm_eps": text.number("layer_norm_eps", 1e-5),
        **{f"text_{name}": value for name, value in text.activation("quick_gelu").items()},
        "end_of_text": vocabulary - 1 if end == OLD_END else end,
    }


def _section(whole: HFConfig, name: str) -> HFConfig:
    """A tower's part of the config; early files say it again under a second name, which counts."""
    section = whole.section(name)
    return replace(section, content={**section.content, **whole.section(f"{name}_dict").content})


CLIP = Family(
    name="transformers CLIP",
    architecture="clip",
    table=KeyTable(KEYS),
    config=config,
    described=described,
    tidy=with_axes,
    resized=resize_positions,
    head_fields=HEAD_FIELDS,
    preprocess=resize_and_crop(1.0, CLIP_MEAN, CLIP_STD),
)

CLIP_VISION = Family(
    name="transformers CLIP image tower",
    architecture="vit",
    table=KeyTable({**image_tower("vision_model.", ""), **image_tower("", "")}),
    config=lambda weights, settings: {"classes": 0, **vit_config(weights, settings)},
    described=lambda description: vision_described(HFConfig.of(description), description),
    tidy=with_axes,
    resized=resized,
    defaults={"pre_norm": True, "proportional_attention": True},
    preprocess=resize_and_crop(1.0, CLIP_MEAN, CLIP_STD),
)
