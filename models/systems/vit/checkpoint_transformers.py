"""ViT, DeiT, DINOv2 and MAE's encoder in the layout of transformers, by the classes that `config.json` names.

Tables are derived from the names and shapes of the library's tensors, fields from the documentation of its configuration classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD, ConfigFields, Family, KeyTable, resize_and_crop, squeeze
from models.checkpoints.hf_config import HFConfig, image_size, prepared_size
from models.systems.vit.checkpoint import resize_position_table, vit_config
from models.systems.vit.model import Pool, ViTConfig


def add_prefix(prefix: str, keys: Mapping[str, str]) -> dict[str, str]:
    """Return the keys of a model inside another one, and alone: `vit.layernorm.weight` and `layernorm.weight`."""
    return {**{f"{prefix}{upstream}": key for upstream, key in keys.items()}, **keys}


def block_keys(upstream: str, prefix: str = "blocks", attention: str = "attention.attention") -> dict[str, str]:
    """Return the keys of blocks of most vision transformers in the library."""
    layer, block = f"{upstream}.{{i}}", f"{prefix}.{{i}}"
    return {
        f"{layer}.layernorm_before.*": f"{block}.norm1.*",
        f"{layer}.{attention}.{{query,key,value}}.*": f"{block}.attn.qkv.*",
        f"{layer}.attention.output.dense.*": f"{block}.attn.proj.*",
        f"{layer}.layernorm_after.*": f"{block}.norm2.*",
        f"{layer}.intermediate.dense.*": f"{block}.mlp.fc1.*",
        f"{layer}.output.dense.*": f"{block}.mlp.fc2.*",
    }


EMBEDDING_KEYS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.*": "patch_embed.proj.*",
}

ENCODER_KEYS = {
    **EMBEDDING_KEYS,
    **block_keys("encoder.layer"),
    "layernorm.*": "norm.*",
}

DINOV2_KEYS = {
    **EMBEDDING_KEYS,
    "encoder.layer.{i}.norm1.*": "blocks.{i}.norm1.*",
    "encoder.layer.{i}.attention.attention.{query,key,value}.*": "blocks.{i}.attn.qkv.*",
    "encoder.layer.{i}.attention.output.dense.*": "blocks.{i}.attn.proj.*",
    "encoder.layer.{i}.layer_scale1.lambda1": "blocks.{i}.ls1.gamma",
    "encoder.layer.{i}.norm2.*": "blocks.{i}.norm2.*",
    "encoder.layer.{i}.mlp.fc1.*": "blocks.{i}.mlp.fc1.*",
    "encoder.layer.{i}.mlp.fc2.*": "blocks.{i}.mlp.fc2.*",
    "encoder.layer.{i}.layer_scale2.lambda1": "blocks.{i}.ls2.gamma",
    "layernorm.*": "norm.*",
}


def config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer the fields of ViTConfig. A file without a head is an encoder."""
    return {"classes": 0, **vit_config(weights, settings)}


def drop_pooler(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Drop an encoder's pooler, which was trained for a task of pre-training alone; vectors are those before it."""
    return {key: value for key, value in published.items() if not key.startswith(("pooler.", "vit.pooler."))}


def drop_mask_token(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Drop the token of masked patches, which only pre-training uses."""
    return {key: value for key, value in published.items() if not key.endswith("embeddings.mask_token")}


def describe(description: Mapping[str, Any]) -> ConfigFields:
    """Read the fields of ViTConfig that `config.json` declares and weights do not determine."""
    declared = HFConfig.from_description(description)
    declared.require_colour()
    return {
        "image_size": image_size(description, 224),
        "depth": declared.integer("num_hidden_layers", 12),
        "heads": declared.integer("num_attention_heads", 12),
        "norm_eps": declared.number("layer_norm_eps", 1e-12),
        **declared.activation("gelu"),
    }


def describe_dinov2(description: Mapping[str, Any]) -> ConfigFields:
    """Read DINOv2's fields of ViTConfig. The position table is resized to the images, in the library as here."""
    declared = HFConfig.from_description(description)
    declared.require("use_swiglu_ffn", False, False)
    declared.require_colour()
    return {
        "image_size": prepared_size(description) or declared.side("image_size", 224),
        "depth": declared.integer("num_hidden_layers", 12),
        "heads": declared.integer("num_attention_heads", 12),
        "norm_eps": declared.number("layer_norm_eps", 1e-6),
        **declared.activation("gelu"),
    }


def fold_layer_scale(weights: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Fold LayerScale (arXiv 2103.17239) into the layer before it, and resize positions to the config's image size."""
    folded = {key: value for key, value in weights.items() if not key.endswith(".gamma")}
    layers = {"ls1": "attn.proj", "ls2": "mlp.fc2"}
    for key in weights.keys() - folded.keys():
        block, scale = key.removesuffix(".gamma").rsplit(".", 1)
        for target in (f"{block}.{layers[scale]}.{name}" for name in ("weight", "bias")):
            if target in folded:  # in float32: half precision would round
                folded[target] = (folded[target].float().movedim(0, -1) * weights[key].float()).movedim(-1, 0)
    return resize_position_table(folded, config)


def duplicate_head(weights: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Duplicate the only head of a distilled model: twice that head and a head of zeros have it as their mean, bit by bit."""
    heads = {key: 2 * value for key, value in weights.items() if key.startswith("head.")}
    zeros = {key.replace("head", "head_dist"): torch.zeros_like(head) for key, head in heads.items()}
    return resize_position_table({**weights, **heads, **zeros}, config)


VIT = Family(
    name="transformers ViT",
    architecture="vit",
    table=KeyTable({**add_prefix("vit.", ENCODER_KEYS), "classifier.*": "head.*"}),
    config=config,
    described=describe,
    clean=drop_pooler,
    resized=resize_position_table,
    own_size=True,
    defaults={"proportional_attention": True},
    preprocess=lambda size: squeeze(size).model_copy(update={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}),
)

MAE_ENCODER = replace(VIT, name="transformers ViTMAE encoder", defaults={"proportional_attention": False}, preprocess=squeeze)

DEIT_KEYS = add_prefix("deit.", {**ENCODER_KEYS, "embeddings.distillation_token": "dist_token"})

DEIT = replace(
    VIT,
    name="transformers DeiT",
    table=KeyTable({**DEIT_KEYS, "classifier.*": "head.*"}),
    resized=duplicate_head,
    preprocess=resize_and_crop(256 / 224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
)
"""Family of DeiT, fine-tuned without its teacher: there is a distillation token, but not its head."""

DEIT_TEACHER = replace(
    DEIT,
    name="transformers DeiT with teacher",
    table=KeyTable({**DEIT_KEYS, "cls_classifier.*": "head.*", "distillation_classifier.*": "head_dist.*"}),
    resized=resize_position_table,
)

DINOV2_FAMILY = replace(
    VIT,
    name="transformers DINOv2",
    table=KeyTable({**add_prefix("dinov2.", DINOV2_KEYS), "classifier.*": "head.*"}),
    described=describe_dinov2,
    own_size=False,
    clean=drop_mask_token,
    resized=fold_layer_scale,
    preprocess=resize_and_crop(256 / 224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
)

DINOV2_CLASSIFIER = replace(
    DINOV2_FAMILY,
    name="transformers DINOv2 classifier",
    defaults={"proportional_attention": True, "pool": Pool.TOKEN_MEAN},
)
