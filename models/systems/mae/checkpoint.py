"""MAE (arXiv 2111.06377) with its decoder. Fine-tuned, it is one of the vision transformers of `models.systems.vit.checkpoint`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from models.checkpoints.family import (
    AUTOENCODER_HEADS,
    ConfigFields,
    Family,
    KeyTable,
    UnlikeFamily,
    block_fields,
    decoder_fields,
    shape_of,
    side_of,
    squeeze,
)
from models.checkpoints.hf_config import HFConfig, image_size
from models.layers.patches import sincos_table
from models.systems.mae.model import MAEConfig
from models.systems.vit import checkpoint_transformers as hub
from models.systems.vit.checkpoint import ENCODER_KEYS, MASKED_DECODER_KEYS, mae_preprocess

IMAGE_SIZE = 224
"""Size of the images that the published autoencoders were trained on."""


def pretraining_config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer fields of MAEConfig from weights, except `normalise_targets`. Decoder heads have 32 channels as published."""
    width, channels, patch_size, _ = shape_of(weights, "patch_embed.proj.weight", 4)
    _, positions, _ = shape_of(weights, "pos_embed", 3)
    if channels == 1:
        raise UnlikeFamily("its patches have one channel, as those of spectrograms")
    fields = block_fields(weights, width)
    del fields["qkv_bias"]
    return {
        **fields,
        "image_size": patch_size * side_of(positions - 1),
        "patch_size": patch_size,
        "channels": channels,
        "width": width,
        **decoder_fields(weights),
    }


def with_tables(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Add the fixed position tables, of IMAGE_SIZE, to files for demonstrations, which may lack them."""
    tokens = {"pos_embed": "cls_token", "decoder_pos_embed": "mask_token"}
    absent = {name: token for name, token in tokens.items() if name not in published}
    if not absent or not {*tokens.values(), "patch_embed.proj.weight", "decoder_pred.weight"} <= published.keys():
        return published
    side = IMAGE_SIZE // published["patch_embed.proj.weight"].shape[-1]
    return {**published, **{name: sincos_table(published[token].shape[-1], side) for name, token in absent.items()}}


def resize_tables(weights: dict[str, Tensor], config: MAEConfig) -> dict[str, Tensor]:
    """Compute the fixed position tables of another image size; only learned ones, as a classifier's, are resized."""
    widths = {"pos_embed": config.width, "decoder_pos_embed": config.decoder_width}
    absent = [name for name in widths if weights[name].shape[1] != 1 + config.patches]
    return weights | {name: sincos_table(widths[name], config.side) for name in absent}


PRETRAINING = Family(
    name="mae_pretrained",
    architecture="mae",
    table=KeyTable({**ENCODER_KEYS, **MASKED_DECODER_KEYS}),
    config=pretraining_config,
    preprocess=mae_preprocess,
    head_fields=AUTOENCODER_HEADS,
    clean=with_tables,
    resized=resize_tables,
)


TRANSFORMERS_KEYS = {
    **hub.add_prefix("vit.", hub.ENCODER_KEYS),
    "decoder.decoder_embed.*": "decoder_embed.*",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.mask_token": "mask_token",
    **hub.block_keys("decoder.decoder_layers", "decoder_blocks"),
    **hub.block_keys("decoder.decoder_encoder.layer", "decoder_blocks"),
    "decoder.decoder_norm.*": "decoder_norm.*",
    "decoder.decoder_pred.*": "decoder_pred.*",
}
"""Blocks of the decoder have the first names in published files, and the second ones since version 5 of the library."""


def fields_from_description(description: Mapping[str, Any]) -> ConfigFields:
    """Return the fields of MAEConfig in `config.json` of transformers that weights do not determine."""
    stated = HFConfig.from_description(description)
    stated.require("hidden_act", "gelu", "gelu")
    stated.require("qkv_bias", True, True)
    stated.require_colour()
    return {
        "image_size": image_size(description, 224),
        "depth": stated.integer("num_hidden_layers", 12),
        "heads": stated.integer("num_attention_heads", 12),
        "decoder_depth": stated.integer("decoder_num_hidden_layers", 8),
        "decoder_heads": stated.integer("decoder_num_attention_heads", 16),
        "norm_eps": stated.number("layer_norm_eps", 1e-12),
        "mask_ratio": stated.share("mask_ratio", 0.75),
        "normalise_targets": stated.flag("norm_pix_loss", False),
    }


TRANSFORMERS = replace(
    PRETRAINING,
    name="transformers ViTMAE",
    table=KeyTable(TRANSFORMERS_KEYS),
    clean=lambda published: published,
    described=fields_from_description,
    preprocess=squeeze,
)
