"""ViT, DeiT, DINOv2 and MAE's encoder in the layout of transformers, by the classes that `config.json` names.

Tables are worked out from the names and shapes of the library's tensors, fields from the documentation of its configuration classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD, ConfigFields, Family, resize_and_crop, squeeze
from models.checkpoints.hf_config import HFConfig, image_size, prepared_size
from models.checkpoints.key_table import KeyTable
from models.systems.vit.checkpoint import resized, vit_config
from models.systems.vit.model import Pool, ViTConfig


def prefixed(prefix: str, keys: Mapping[str, str]) -> dict[str, str]:
    """Keys of a model inside another one, and by itself: `vit.layernorm.weight` and `layernorm.weight`."""
    return {**{f"{prefix}{theirs}": ours for theirs, ours in keys.items()}, **keys}


def blocks(theirs: str, ours: str = "blocks", attention: str = "attention.attention") -> dict[str, str]:
    """Keys of blocks as most vision transformers of the library have them, of the attention those with a `*` alone."""
    layer, block = f"{theirs}.{{i}}", f"{ours}.{{i}}"
    return {
        f"{layer}.layernorm_before.*": f"{block}.norm1.*",
        f"{layer}.{attention}.{{query,key,value}}.*": f"{block}.attn.qkv.*",
        f"{layer}.attention.output.dense.*": f"{block}.attn.proj.*",
        f"{layer}.layernorm_after.*": f"{block}.norm2.*",
        f"{layer}.intermediate.dense.*": f"{block}.mlp.fc1.*",
        f"{layer}.output.dense.*": f"{block}.mlp.fc2.*",
    }


EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.*": "patch_embed.proj.*",
}

ENCODER = {
    **EMBEDDINGS,
    **blocks("encoder.layer"),
    "layernorm.*": "norm.*",
}

DINOV2 = {
    **EMBEDDINGS,
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
    """The fields of ViTConfig that weights tell. A file without a head is an encoder."""
    return {"classes": 0, **vit_config(weights, settings)}


def without_pooler(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """An encoder's last layer, with tanh, was trained for a task that ended with pre-training; vectors are those before it."""
    return {key: value for key, value in published.items() if not key.startswith(("pooler.", "vit.pooler."))}


def without_mask_token(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Leave out the token of masked patches, which pre-training alone uses."""
    return {key: value for key, value in published.items() if not key.endswith("embeddings.mask_token")}


def described(description: Mapping[str, Any]) -> ConfigFields:
    """Fields of ViTConfig that `config.json` states and weights do not tell."""
    stated = HFConfig.of(description)
    stated.require_colour()
    return {
        "image_size": image_size(description, 224),
        "depth": stated.integer("num_hidden_layers", 12),
        "heads": stated.integer("num_attention_heads", 12),
        "norm_eps": stated.number("layer_norm_eps", 1e-12),
        **stated.activation("gelu"),
    }


def dinov2_described(description: Mapping[str, Any]) -> ConfigFields:
    """The same. Its table of positions is resized to the images that are prepared, in the library as here."""
    stated = HFConfig.of(description)
    stated.require("use_swiglu_ffn", False, False)
    stated.require_colour()
    return {
        "image_size": prepared_size(description) or stated.side("image_size", 224),
        "depth": stated.integer("num_hidden_layers", 12),
        "heads": stated.integer("num_attention_heads", 12),
        "norm_eps": stated.number("layer_norm_eps", 1e-6),
        **stated.activation("gelu"),
    }


def scaled(weights: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """LayerScale (arXiv 2103.17239) as part of the layer before it, which is the same product; the table for the config's image size."""
    kept = {key: value for key, value in weights.items() if not key.endswith(".gamma")}
    layers = {"ls1": "attn.proj", "ls2": "mlp.fc2"}
    for key in weights.keys() - kept.keys():
        block, scale = key.removesuffix(".gamma").rsplit(".", 1)
        for part in (f"{block}.{layers[scale]}.{name}" for name in ("weight", "bias")):
            if part in kept:
                kept[part] = (kept[part].float().movedim(0, -1) * weights[key].float()).movedim(-1, 0)  # half precision would round
    return resized(kept, config)


def one_head(weights: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """A distilled model of which only the class token's head is used: twice that head and a second one of zeros have it as their mean, to
    the last bit."""
    heads = {key: 2 * value for key, value in weights.items() if key.startswith("head.")}
    zeros = {key.replace("head", "head_dist"): torch.zeros_like(head) for key, head in heads.items()}
    return resized({**weights, **heads, **zeros}, config)


VIT = Family(
    name="transformers ViT",
    architecture="vit",
    table=KeyTable({**prefixed("vit.", ENCODER), "classifier.*": "head.*"}),
    config=config,
    described=described,
    tidy=without_pooler,
    resized=resized,
    own_size=True,
    defaults={"proportional_attention": True},
    preprocess=lambda size: squeeze(size).model_copy(update={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}),
)

MAE_ENCODER = replace(VIT, name="transformers ViTMAE encoder", defaults={"proportional_attention": False}, preprocess=squeeze)

DEIT_KEYS = prefixed("deit.", {**ENCODER, "embeddings.distillation_token": "dist_token"})

DEIT = replace(
    VIT,
    name="transformers DeiT",
    table=KeyTable({**DEIT_KEYS, "classifier.*": "head.*"}),
    resized=one_head,
    preprocess=resize_and_crop(256 / 224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
)
"""Fine-tuned without its teacher: the distillation token is read, and its head is gone."""

DEIT_TEACHER = replace(
    DEIT,
    name="transformers DeiT with teacher",
    table=KeyTable({**DEIT_KEYS, "cls_classifier.*": "head.*", "distillation_classifier.*": "head_dist.*"}),
    resized=resized,
)

DINOV2_FAMILY = replace(
    VIT,
    name="transformers DINOv2",
    table=KeyTable({**prefixed("dinov2.", DINOV2), "classifier.*": "head.*"}),
    described=dinov2_described,
    own_size=False,
    tidy=without_mask_token,
    resized=scaled,
    preprocess=resize_and_crop(256 / 224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
)

DINOV2_CLASSIFIER = replace(
    DINOV2_FAMILY,
    name="transformers DINOv2 classifier",
    defaults={"proportional_attention": True, "pool": Pool.TOKEN_MEAN},
)
