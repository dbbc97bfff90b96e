"""Vision transformers of timm (AugReg and related), DeiT, MAE, SWAG and torchvision.

Also key names that other systems' files share with timm's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from torch import Tensor

from models.bundle_schema import Preprocess
from models.checkpoints.family import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ConfigFields,
    Family,
    KeyTable,
    block_fields,
    resize_and_crop,
    shape_of,
    side_of,
)
from models.layers.patches import resize_table
from models.systems.vit.model import Pool, ViTConfig

BLOCK_KEYS = {
    "blocks.{i}.norm1.*": "blocks.{i}.norm1.*",
    "blocks.{i}.attn.qkv.*": "blocks.{i}.attn.qkv.*",
    "blocks.{i}.attn.proj.*": "blocks.{i}.attn.proj.*",
    "blocks.{i}.norm2.*": "blocks.{i}.norm2.*",
    "blocks.{i}.mlp.fc1.*": "blocks.{i}.mlp.fc1.*",
    "blocks.{i}.mlp.fc2.*": "blocks.{i}.mlp.fc2.*",
}

ENCODER_KEYS = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "patch_embed.proj.*": "patch_embed.proj.*",
    **BLOCK_KEYS,
}

DECODER_KEYS = {
    "decoder_embed.*": "decoder_embed.*",
    "decoder_pos_embed": "decoder_pos_embed",
    **{f"decoder_{theirs}": f"decoder_{ours}" for theirs, ours in BLOCK_KEYS.items()},
    "decoder_norm.*": "decoder_norm.*",
    "decoder_pred.*": "decoder_pred.*",
}
"""Keys of decoders, in MAE and models built on it."""

MASKED_DECODER_KEYS = {
    "norm.*": "norm.*",
    "mask_token": "mask_token",
    **DECODER_KEYS,
}

TIMM_KEYS = {
    **ENCODER_KEYS,
    "norm.*": "norm.*",
    "head.*": "head.*",
}
"""Keys of timm, whose parameter names are used here."""

DEIT_KEYS = {
    **TIMM_KEYS,
    "dist_token": "dist_token",
    "head_dist.*": "head_dist.*",
}

MAE_KEYS = {
    **TIMM_KEYS,
    "fc_norm.*": "fc_norm.*",
}

SWAG_KEYS = {
    "class_token": "cls_token",
    "conv_proj.*": "patch_embed.proj.*",
    "encoder.pos_embedding": "pos_embed",
    "encoder.layers.layer_{i}.ln_1.*": "blocks.{i}.norm1.*",
    "encoder.layers.layer_{i}.self_attention.in_proj_weight": "blocks.{i}.attn.qkv.weight",
    "encoder.layers.layer_{i}.self_attention.in_proj_bias": "blocks.{i}.attn.qkv.bias",
    "encoder.layers.layer_{i}.self_attention.out_proj.*": "blocks.{i}.attn.proj.*",
    "encoder.layers.layer_{i}.ln_2.*": "blocks.{i}.norm2.*",
    "encoder.layers.layer_{i}.mlp.linear_1.*": "blocks.{i}.mlp.fc1.*",
    "encoder.layers.layer_{i}.mlp.linear_2.*": "blocks.{i}.mlp.fc2.*",
    "encoder.ln.*": "norm.*",
    "head.layers.head.*": "head.*",
}

TORCHVISION_KEYS = {
    "encoder.layers.encoder_layer_{i}.mlp.0.*": "blocks.{i}.mlp.fc1.*",
    "encoder.layers.encoder_layer_{i}.mlp.3.*": "blocks.{i}.mlp.fc2.*",
    **{key.replace("layers.layer_", "layers.encoder_layer_").replace("head.layers", "heads"): ours for key, ours in SWAG_KEYS.items()},
}
"""Keys of torchvision's `vit_b_16` and related; its downloads have the older names `linear_1` and `linear_2`."""


def vit_config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    width, channels, patch_size, patch_width = shape_of(weights, "patch_embed.proj.weight", 4)
    _, positions, _ = shape_of(weights, "pos_embed", 3)
    special = sum(token in weights for token in ("cls_token", "dist_token"))
    oblong = {} if patch_width == patch_size else {"patch_width": patch_width}
    return {
        **oblong,
        "image_size": settings.get("image_size") or patch_size * side_of(positions - special),
        "patch_size": patch_size,
        "channels": channels,
        "width": width,
        "class_token": "cls_token" in weights,
        "distilled": "dist_token" in weights,
        "pool": Pool.MEAN if "fc_norm.weight" in weights else Pool.TOKEN if "cls_token" in weights else Pool.NORM_MEAN,
        **block_fields(weights, width),
    }


def resize_position_table(weights: dict[str, Tensor], config: ViTConfig, *, align_corners: bool = False) -> dict[str, Tensor]:
    table = resize_table(weights["pos_embed"], config.patches, special=config.special_tokens, align_corners=align_corners)
    return {**weights, "pos_embed": table}


def mae_preprocess(size: int) -> Preprocess:
    """Prepare images as MAE does; above 224 pixels the whole short side is used."""
    short_side = int(size / (224 / 256)) if size <= 224 else size
    return Preprocess(image_size=size, short_side=short_side, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD)


CROP_RATIOS = {256: 0.9, math.inf: 1.0}
"""`crop_pct` of timm's AugReg models: ratio of the crop to the short side, by the maximum image size that has it."""


def timm_preprocess(size: int) -> Preprocess:
    """Prepare images by timm's defaults for AugReg models."""
    ratio = next(ratio for max_size, ratio in CROP_RATIOS.items() if size <= max_size)
    half = (0.5, 0.5, 0.5)
    return Preprocess(image_size=size, short_side=math.floor(size / ratio), interpolation="bicubic", mean=half, std=half)


def torchvision_preprocess(size: int) -> Preprocess:
    """Prepare images by torchvision's `ViT_B_16_Weights`: those above 224 pixels are SWAG's, which use the whole short side."""
    default = resize_and_crop(256 / 224, IMAGENET_MEAN, IMAGENET_STD, "bilinear")
    return default(size) if size <= 224 else resize_and_crop(1.0, IMAGENET_MEAN, IMAGENET_STD)(size)


TIMM = Family(
    name="timm",
    architecture="vit",
    table=KeyTable(TIMM_KEYS),
    config=vit_config,
    resized=resize_position_table,
    defaults={"proportional_attention": True},
    preprocess=timm_preprocess,
    headless=True,
    wrapper=None,
)

DEIT = Family(
    name="deit",
    architecture="vit",
    table=KeyTable(DEIT_KEYS),
    config=vit_config,
    resized=resize_position_table,
    defaults={"proportional_attention": True},
    preprocess=resize_and_crop(256 / 224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    headless=True,
)
"""Family of DeiT (arXiv 2012.12877), also distilled, and of DeiT models trained with ToMe."""

MAE = Family(
    name="mae",
    architecture="vit",
    table=KeyTable(MAE_KEYS),
    config=vit_config,
    resized=resize_position_table,
    defaults={"proportional_attention": False},
    preprocess=mae_preprocess,
    headless=True,
)
"""Family of fine-tuned MAE (arXiv 2111.06377): the mean of the patches by default, the class token if there is a `norm`. Models trained
with ToMe have the same keys; they need `proportional_attention=true`."""

SWAG = Family(
    name="swag",
    architecture="vit",
    table=KeyTable(SWAG_KEYS, swapped=frozenset({"pos_embed"})),
    config=vit_config,
    defaults={"proportional_attention": True},
    preprocess=resize_and_crop(1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    resized=partial(resize_position_table, align_corners=True),
    headless=True,
    wrapper=None,
)
"""Family of SWAG. A file without a class token, which was never published, becomes a model that pools the mean of all normalised tokens,
weighted by size."""

TORCHVISION = Family(
    name="torchvision",
    architecture="vit",
    table=KeyTable(TORCHVISION_KEYS),
    config=vit_config,
    defaults={"proportional_attention": True},
    preprocess=torchvision_preprocess,
    resized=partial(resize_position_table, align_corners=True),
    headless=True,
    wrapper=None,
)
"""Family of torchvision. `vit_l_16` of 224 pixels was validated with a short side of 242; SWAG's linear heads with 224, bicubic."""
