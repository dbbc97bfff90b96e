"""MAE-ST (arXiv 2205.09113), fine-tuned or with its decoder, from its own code or converted from PySlowFast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.family import (
    AUTOENCODER_HEADS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    KINETICS_MEAN,
    KINETICS_STD,
    ConfigFields,
    Family,
    KeyTable,
    UnlikeFamily,
    block_fields,
    depth_of,
    resize_and_crop,
    shape_of,
    side_of,
)
from models.checkpoints.hf_config import HFConfig, image_size
from models.systems.mae_st.model import VideoMAEConfig
from models.systems.vit.checkpoint import BLOCK_KEYS
from models.systems.vit.checkpoint_transformers import add_prefix, block_keys

BLOCKS = {key.replace("qkv", "{q,k,v}"): ours for key, ours in BLOCK_KEYS.items()}

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


def pretraining_config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer fields of VideoMAEPretrainingConfig from weights. Decoder heads have 32 channels in the published sizes."""
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


def config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer fields of VideoMAEConfig from weights; `frames` may be set."""
    width, channels, patch_frames, patch_size, _ = shape_of(weights, "patch_embed.proj.weight", 5)
    separate = "pos_embed.spatial" in weights
    if separate:
        _, patches, _ = shape_of(weights, "pos_embed.spatial", 3)
        _, times, _ = shape_of(weights, "pos_embed.temporal", 3)
    else:
        _, positions, _ = shape_of(weights, "pos_embed.joint", 3)
        frames = settings.get("frames", FRAMES)
        if not isinstance(frames, int) or frames < patch_frames:
            raise ValueError(f"frames: {frames!r} where a patch has {patch_frames} frames")
        times = frames // patch_frames
        patches, rest = divmod(positions - ("cls_token" in weights), times)
        if rest:
            raise UnlikeFamily(f"its position table has {positions} places, which {times} times do not divide")
    return {
        "image_size": patch_size * side_of(patches),
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


TRANSFORMERS_KEYS = {
    **add_prefix(
        "videomae.",
        {
            "embeddings.patch_embeddings.projection.*": "patch_embed.proj.*",
            **{
                key.replace("value}.*", "value}.weight"): ours.replace("qkv.*", "qkv.weight")
                for key, ours in block_keys("encoder.layer").items()
            },
            "encoder.layer.{i}.attention.attention.q_bias": "blocks.{i}.attn.q_bias",
            "encoder.layer.{i}.attention.attention.v_bias": "blocks.{i}.attn.v_bias",
        },
    ),
    "fc_norm.*": "norm.*",
    "classifier.*": "head.*",
}
"""VideoMAE (arXiv 2203.12602): keys have no bias, and the table of positions is fixed."""

FINAL_NORM_EPS = 1e-5
"""PyTorch's default, which the library's last norm has for any `layer_norm_eps`."""


def videomae_config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer fields of VideoMAEConfig from weights, except `image_size` and `frames`."""
    width, channels, patch_frames, patch_size, _ = shape_of(weights, "patch_embed.proj.weight", 5)
    return {
        "patch_size": patch_size,
        "patch_frames": patch_frames,
        "channels": channels,
        "width": width,
        **block_fields(weights, width),
        "qkv_bias": "blocks.0.attn.q_bias" in weights,
    }


def videomae_description_fields(description: Mapping[str, Any]) -> ConfigFields:
    """Return the fields in `config.json` that weights do not determine."""
    stated = HFConfig.from_description(description)
    stated.require("hidden_act", "gelu", "gelu")
    stated.require("use_mean_pooling", True, True)
    stated.require_colour()
    return {
        "image_size": image_size(description, 224),
        "frames": stated.integer("num_frames", 16),
        "depth": stated.integer("num_hidden_layers", 12),
        "heads": stated.integer("num_attention_heads", 12),
        "norm_eps": stated.number("layer_norm_eps", 1e-12),
    }


def complete_weights(weights: dict[str, Tensor], config: VideoMAEConfig) -> dict[str, Tensor]:
    """Join the biases of q, k (0) and v, and add the table of positions."""
    complete = {key: value for key, value in weights.items() if not key.endswith(("q_bias", "v_bias"))}
    for key in weights.keys() - complete.keys():
        if key.endswith("q_bias"):
            q, v = weights[key], weights[key.replace("q_bias", "v_bias")]
            complete[key.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(q), v])
    return {**complete, "pos_embed.joint": interleaved_table(config.width, config.patches)}


def interleaved_table(width: int, length: int) -> Tensor:
    """Return alternating sines and cosines (section 3.5 of arXiv 1706.03762) of patches counted through the clip: (1, length, width)."""
    frequencies = 10000.0 ** -(torch.arange(width, dtype=torch.float64, device="cpu") // 2 * 2 / width)
    angles = torch.arange(length, dtype=torch.float64, device="cpu").unsqueeze(1) * frequencies  # (length, width)
    return torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos()).float().unsqueeze(0)


TRANSFORMERS = Family(
    name="transformers VideoMAE",
    architecture="video_mae",
    table=KeyTable(TRANSFORMERS_KEYS),
    config=videomae_config,
    described=videomae_description_fields,
    resized=complete_weights,
    smooth=True,
    defaults={
        "proportional_attention": False,
        "class_token": False,
        "separate_positions": False,
        "first_in_mean": True,
        "final_norm_eps": FINAL_NORM_EPS,
    },
    preprocess=resize_and_crop(1.0, IMAGENET_MEAN, IMAGENET_STD, "bilinear"),
)
