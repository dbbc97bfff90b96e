"""SWAG (arXiv 2201.08371): weakly supervised transformers with names of their own and the sequence as first axis.

A file without a class token, which was never published, is read as a model whose head sees the mean of all normalised tokens, merged ones
by their size.
"""

from __future__ import annotations

from models.published.family import IMAGENET_MEAN, IMAGENET_STD, Family, resize_and_crop, vit_config
from models.published.key_table import KeyTable

KEYS = {
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

FAMILY = Family(
    name="swag",
    architecture="vit",
    table=KeyTable(KEYS, swapped=frozenset({"pos_embed"})),
    config=vit_config,
    defaults={"proportional_attention": True},
    preprocess=resize_and_crop(1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    align_corners=True,
)
