"""MAE-ST fine-tuned (arXiv 2205.09113), from its own code or converted from PySlowFast."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.bundle import Preprocess
from models.published.family import Family, Fields, UnlikeFamily, block_fields, shape_of, side_of
from models.published.key_table import KeyTable

KEYS = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "pos_embed_spatial": "pos_embed_spatial",
    "pos_embed_temporal": "pos_embed_temporal",
    "pos_embed_class": "pos_embed_class",
    "patch_embed.proj.*": "patch_embed.proj.*",
    "blocks.{i}.norm1.*": "blocks.{i}.norm1.*",
    "blocks.{i}.attn.{q,k,v}.*": "blocks.{i}.attn.qkv.*",
    "blocks.{i}.attn.proj.*": "blocks.{i}.attn.proj.*",
    "blocks.{i}.norm2.*": "blocks.{i}.norm2.*",
    "blocks.{i}.mlp.fc1.*": "blocks.{i}.mlp.fc1.*",
    "blocks.{i}.mlp.fc2.*": "blocks.{i}.mlp.fc2.*",
    "norm.*": "norm.*",
    "head.*": "head.*",
    "head.projection.*": "head.*",
}

FRAMES = 16
"""Of the published clips. With one position table for space and time, the file does not say how many frames there are."""


def config(weights: Mapping[str, Tensor], settings: Fields) -> Fields:
    """The fields of VideoMAEConfig that weights tell, `frames` also by hand."""
    width, channels, patch_frames, patch_size, _ = shape_of(weights, "patch_embed.proj.weight", 5)
    separate = "pos_embed_spatial" in weights
    if separate:
        _, places, _ = shape_of(weights, "pos_embed_spatial", 3)
        _, times, _ = shape_of(weights, "pos_embed_temporal", 3)
    else:
        _, positions, _ = shape_of(weights, "pos_embed", 3)
        times = settings.get("frames", FRAMES) // patch_frames
        if (positions - ("cls_token" in weights)) % times:
            raise UnlikeFamily(f"its position table has {positions} places, which {times} times do not divide")
        places = positions // times
    return {
        "image_size": patch_size * side_of(places),
        "patch_size": patch_size,
        "frames": times * patch_frames,
        "patch_frames": patch_frames,
        "channels": channels,
        "width": width,
        "class_token": "cls_token" in weights,
        "separate_positions": separate,
        **block_fields(weights, width),
    }


FAMILY = Family(
    name="mae_st",
    architecture="video_mae",
    table=KeyTable(KEYS),
    config=config,
    defaults={"proportional_attention": False},
    preprocess=lambda size: Preprocess(
        image_size=size, short_side=int(256 / 224 * size), interpolation="bilinear", mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)
    ),
)
