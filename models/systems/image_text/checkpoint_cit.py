"""CiT (arXiv 2301.02241): checkpoints of pairs of towers in Hugging Face's layout, one family per vision tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from models.bundle_schema import Preprocess
from models.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD, RGB, ConfigFields, Family, KeyTable, resize_and_crop, shape_of
from models.systems.image_text.checkpoint_common import HEAD_FIELDS, resize_positions, tower_fields
from models.systems.image_text.cit import VisionTower
from models.systems.vit.checkpoint import ENCODER_KEYS, SWAG_KEYS, TIMM_KEYS

_LAYER = "text_model.encoder.layer.{i}"
_BLOCK = "text.blocks.{i}"

BERT_AND_PROJECTIONS = {
    "text_model.embeddings.word_embeddings.weight": "text.token_embed.weight",
    "text_model.embeddings.position_embeddings.weight": "text.pos_embed.weight",
    "text_model.embeddings.token_type_embeddings.weight": "text.type_embed.weight",
    "text_model.embeddings.LayerNorm.*": "text.embed_norm.*",
    f"{_LAYER}.attention.self.{{query,key,value}}.*": f"{_BLOCK}.attn.qkv.*",
    f"{_LAYER}.attention.output.dense.*": f"{_BLOCK}.attn.proj.*",
    f"{_LAYER}.attention.output.LayerNorm.*": f"{_BLOCK}.norm1.*",
    f"{_LAYER}.intermediate.dense.*": f"{_BLOCK}.mlp.fc1.*",
    f"{_LAYER}.output.dense.*": f"{_BLOCK}.mlp.fc2.*",
    f"{_LAYER}.output.LayerNorm.*": f"{_BLOCK}.norm2.*",
    "text_model.pooler.dense.*": "pooler.*",
    "visual_projection.weight": "vision_projection.weight",
    "text_projection.weight": "text_projection.weight",
    "logit_scale": "logit_scale",
}

POSITION_IDS = "text_model.embeddings.position_ids"
"""Key of 0, 1, 2, …: a buffer that later versions of the library no longer save."""


MOCO = {
    **ENCODER_KEYS,
    "norm.*": "norm.*",
}


def keys(tower: VisionTower, vision: Mapping[str, str]) -> dict[str, str]:
    return {**{f"vision_model.{tower}.{key}": f"vision.{ours}" for key, ours in vision.items()}, **BERT_AND_PROJECTIONS}


def drop_position_ids(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {key: value for key, value in published.items() if key != POSITION_IDS}


def add_position_ids(published: dict[str, Tensor]) -> dict[str, Tensor]:
    positions = published["text_model.embeddings.position_embeddings.weight"]
    return {**published, POSITION_IDS: torch.arange(len(positions), device=positions.device).unsqueeze(0)}


def config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    projector: ConfigFields = {}
    if "head.0.weight" in weights:
        hidden, _ = shape_of(weights, "head.0.weight", 2)
        projector = {"projector_hidden": hidden, "projector_width": shape_of(weights, "head.6.weight", 2)[0]}
    return {
        **tower_fields(weights, settings),
        "tower_classes": shape_of(weights, "vision.head.weight", 2)[0] if "vision.head.weight" in weights else 0,
        "positions": shape_of(weights, "text.pos_embed.weight", 2)[0],
        "joint_width": shape_of(weights, "text_projection.weight", 2)[0],
        **projector,
    }


def preprocess(mean: RGB, std: RGB) -> Callable[[int], Preprocess]:
    return resize_and_crop(256 / 224, mean, std, "bilinear")


FAMILY = Family(
    name="cit",
    architecture="cit",
    table=KeyTable({**keys(VisionTower.MOCO, MOCO), "vision_model.moco.head.{i}.*": "head.{i}.*"}),
    config=config,
    defaults={"tower": VisionTower.MOCO},
    preprocess=preprocess(IMAGENET_MEAN, IMAGENET_STD),
    head_fields=HEAD_FIELDS,
    clean=drop_position_ids,
    completed=add_position_ids,
    resized=resize_positions,
    wrapper=None,
)

AUGREG = replace(
    FAMILY,
    name="cit_augreg",
    table=KeyTable(keys(VisionTower.AUGREG, TIMM_KEYS)),
    defaults={"tower": VisionTower.AUGREG},
    preprocess=preprocess((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
)
"""Family with a vision tower of AugReg. The tower's head of 21843 classes is kept, so that export is lossless."""

SWAG = replace(
    FAMILY,
    name="cit_swag",
    table=KeyTable(
        keys(VisionTower.SWAG, {key: ours for key, ours in SWAG_KEYS.items() if not key.startswith("head.")}),
        swapped=frozenset({"vision.pos_embed"}),
    ),
    defaults={"tower": VisionTower.SWAG},
    resized=partial(resize_positions, align_corners=True),
)
"""Family with a vision tower of SWAG. No such file was published: the names are SWAG's own, under the prefix of the others."""
