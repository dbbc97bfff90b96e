"""SigLIP (arXiv 2303.15343) in the layout of transformers: its image tower, by itself, beside texts or under a classifier.

Tables are worked out from the names and shapes of the library's tensors, fields from the documentation of its configuration classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from models.pairs.published_clip import blocks, vision_described, with_axes
from models.published.family import Family, Fields, squeeze
from models.published.key_table import KeyTable
from models.published.model_config import ModelConfig
from models.published.processor import HALF
from models.spec import Preprocess
from models.vit.model import Pool
from models.vit.published import resized, vit_config

USUAL = {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh", "patch_size": 16}
"""Defaults of the configuration class that are not CLIP's."""


def image_tower(theirs: str) -> dict[str, str]:
    return {
        f"{theirs}embeddings.position_embedding.weight": "pos_embed",
        f"{theirs}embeddings.patch_embedding.*": "patch_embed.proj.*",
        **blocks(theirs, ""),
        f"{theirs}post_layernorm.*": "norm.*",
    }


def head(theirs: str) -> dict[str, str]:
    """Keys of what makes one vector of all patches. q, k and v are one matrix there and two here: `split` divides it."""
    return {
        f"{theirs}head.probe": "attn_pool.query",
        f"{theirs}head.attention.in_proj_weight": "attn_pool.qkv.weight",
        f"{theirs}head.attention.in_proj_bias": "attn_pool.qkv.bias",
        f"{theirs}head.attention.out_proj.*": "attn_pool.proj.*",
        f"{theirs}head.layernorm.*": "attn_pool.norm.*",
        f"{theirs}head.mlp.fc1.*": "attn_pool.mlp.fc1.*",
        f"{theirs}head.mlp.fc2.*": "attn_pool.mlp.fc2.*",
    }


def split(weights: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    kept = {key: value for key, value in weights.items() if not key.startswith("attn_pool.qkv.")}
    for name in ("weight", "bias"):
        if (whole := weights.get(f"attn_pool.qkv.{name}")) is not None:
            kept[f"attn_pool.q.{name}"], kept[f"attn_pool.kv.{name}"] = whole[: config.width], whole[config.width :]
    return resized(kept, config)


def without_head(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A classifier takes the mean of the patches, and its file may hold what it does not use."""
    return {key: value for key, value in with_axes(published).items() if ".head." not in key}


def encoder_described(description: Mapping[str, Any]) -> Fields:
    stated = ModelConfig.of(description)
    stated.require("vision_use_head", True, True)
    return _described(stated, description)


def classifier_described(description: Mapping[str, Any]) -> Fields:
    return _described(ModelConfig.of(description).section("vision_config"), description)


def pair_described(description: Mapping[str, Any]) -> Fields:
    stated = ModelConfig.of(description).section("vision_config")
    stated.require("vision_use_head", True, True)
    return _described(stated, description)


def image_half(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Leave out texts and what scales and shifts their cosines."""
    return {key: value for key, value in with_axes(published).items() if not key.startswith(("text_model.", "logit_"))}


def _described(stated: ModelConfig, description: Mapping[str, Any]) -> Fields:
    whole = ModelConfig(USUAL | dict(stated.content), stated.where)
    fields = vision_described(whole, description)
    return {**fields, "cut_edge": fields["image_size"] % whole.integer("patch_size", 16) != 0}


def preprocess(size: int) -> Preprocess:
    return squeeze(size).model_copy(update={"interpolation": "bicubic", "mean": HALF, "std": HALF})


VISION = Family(
    name="transformers SigLIP image tower",
    architecture="vit",
    table=KeyTable({**image_tower("vision_model."), **head("vision_model."), **image_tower(""), **head("")}),
    config=lambda weights, settings: {"classes": 0, **vit_config(weights, settings)},
    described=encoder_described,
    tidy=with_axes,
    resized=split,
    defaults={"pool": Pool.ATTENTION, "proportional_attention": True},
    preprocess=preprocess,
)

PAIR = replace(
    VISION,
    name="transformers SigLIP, of which the image tower alone is taken",
    described=pair_described,
    tidy=image_half,
)

CLASSIFIER = Family(
    name="transformers SigLIP classifier",
    architecture="vit",
    table=KeyTable({**image_tower("vision_model."), "classifier.*": "head.*"}),
    config=vit_config,
    described=classifier_described,
    tidy=without_head,
    resized=resized,
    defaults={"pool": Pool.NORM_MEAN, "proportional_attention": True},
    preprocess=preprocess,
)
