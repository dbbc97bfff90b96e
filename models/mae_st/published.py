"""MAE-ST (arXiv 2205.09113), fine-tuned or with its decoder, from its own code or converted from PySlowFast."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.published.family import (
    AUTOENCODER_HEADS,
    KINETICS_MEAN,
    KINETICS_STD,
    Family,
    Fields,
    UnlikeFamily,
    block_fields,
    depth_of,
    resize_and_crop,
    shape_of,
    side_of,
)
from models.published.key_table import KeyTable

BLOCKS = {
    "blocks.{i}.norm1.*": "blocks.{i}.norm1.*",
    "blocks.{i}.attn.{q,k,v}.*": "blocks.{i}.attn.qkv.*",
    "blocks.{i}.attn.proj.*": "blocks.{i}.attn.proj.*",
    "blocks.{i}.norm2.*": "blocks.{i}.norm2.*",
    "blocks.{i}.mlp.fc1.*": "blocks.{i}.mlp.fc1.*",
    "blocks.{i}.mlp.fc2.*": "blocks.{i}.mlp.fc2.*",
}

POSITIONS = {
    "pos_embed": "pos_embed.joint",
    "pos_embed_spatial": "pos_embed.spatial",
    "pos_embed_temporal": "pos_embed.temporal",
    "pos_embed_class": "pos_embed.first",
}

ENCODER = {
    "cls_token": "cls_token",
    **POSITIONS,
    "patch_embed.proj.*": "patch_embed.proj.*",
    **BLOCKS,
    "norm.*": "norm.*",
}

KEYS = {
    **ENCODER,
    "head.*": "head.*",
    "head.projection.*": "head.*",
}

PRETRAINING_KEYS = {
    **ENCODER,
    "mask_token": "mask_token",
    "decoder_cls_token": "decoder_cls_token",
    "decoder_embed.*": "decoder_embed.*",
    **{f"decoder_{theirs}": f"decoder_{ours}" for theirs, ours in {**POSITIONS, **BLOCKS}.items()},
    "decoder_norm.*": "decoder_norm.*",
    "decoder_pred.*": "decoder_pred.*",
}

FRAMES = 16
"""Frames of the published clips. With one position table for space and time, the file does not say how many frames there are."""


def pretraining_config(weights: Mapping[str, Tensor], settings: Fields) -> Fields:
    """The fields of VideoMAEPretrainingConfig that weights tell. Decoder heads have 32 channels in the published sizes."""
    fields = config(weights, settings)
    outputs, small = shape_of(weights, "decoder_pred.weight", 2)
    times = fields["frames"] // fields["patch_frames"]
    fields |= {
        "decoder_width": small,
        "decoder_depth": depth_of(weights, "decoder_blocks"),
        "predicted_frames": outputs // (fields["patch_size"] ** 2 * fields["channels"]) * times,
    }
    if small % 32 == 0:
        fields["decoder_heads"] = small // 32
    return fields


def config(weights: Mapping[str, Tensor], settings: Fields) -> Fields:
    """The fields of VideoMAEConfig that weights tell, `frames` also by hand."""
    width, channels, patch_frames, patch_size, _ = shape_of(weights, "patch_embed.proj.weight", 5)
    separate = "pos_embed.spatial" in weights
    if separate:
        _, places, _ = shape_of(weights, "pos_embed.spatial", 3)
        _, times, _ = shape_of(weights, "pos_embed.temporal", 3)
    else:
        _, positions, _ = shape_of(weights, "pos_embed.joint", 3)
        frames = settings.get("frames", FRAMES)
        if not isinstance(frames, int) or frames < patch_frames:
            raise ValueError(f"frames: {frames!r} where a patch has {patch_frames} frames")
        times = frames // patch_frames
        places, rest = divmod(positions - ("cls_token" in weights), times)
        if rest:
            raise UnlikeFamily(f"its position table has {positions} places, which {times} times do not divide")
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


PREPROCESS = resize_and_crop(256 / 224, KINETICS_MEAN, KINETICS_STD, "bilinear")

FAMILY = Family(
    name="mae_st",
    architecture="video_mae",
    table=KeyTable(KEYS),
    config=config,
    defaults={"proportional_attention": False},
    preprocess=PREPROCESS,
)

PRETRAINING = Family(
    name="mae_st_pretrained",
    architecture="video_mae_pretraining",
    table=KeyTable(PRETRAINING_KEYS),
    config=pretraining_config,
    preprocess=PREPROCESS,
    head_fields=AUTOENCODER_HEADS,
)
