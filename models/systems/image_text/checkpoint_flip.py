"""FLIP (arXiv 2212.00794): checkpoints of T5X, whose arrays have JAX's layouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.bundle_schema import Preprocess
from models.checkpoints import t5x
from models.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD, ConfigFields, Family, KeyTable, shape_of
from models.layers.patches import sincos_table
from models.systems.image_text.checkpoint_common import HEAD_FIELDS, tower_fields


def transformer_keys(upstream: str, prefix: str) -> dict[str, str]:
    block, attention = f"{upstream}.Transformer.encoderblock_{{ii}}", "MultiHeadDotProductAttention_0"
    return {
        f"{block}.LayerNorm_0.scale": f"{prefix}.blocks.{{i}}.norm1.weight",
        f"{block}.LayerNorm_0.bias": f"{prefix}.blocks.{{i}}.norm1.bias",
        f"{block}.{attention}.{{query,key,value}}.kernel": f"{prefix}.blocks.{{i}}.attn.qkv.weight",
        f"{block}.{attention}.{{query,key,value}}.bias": f"{prefix}.blocks.{{i}}.attn.qkv.bias",
        f"{block}.{attention}.out.kernel": f"{prefix}.blocks.{{i}}.attn.proj.weight",
        f"{block}.{attention}.out.bias": f"{prefix}.blocks.{{i}}.attn.proj.bias",
        f"{block}.LayerNorm_1.scale": f"{prefix}.blocks.{{i}}.norm2.weight",
        f"{block}.LayerNorm_1.bias": f"{prefix}.blocks.{{i}}.norm2.bias",
        f"{block}.MlpBlock_0.Dense_0.kernel": f"{prefix}.blocks.{{i}}.mlp.fc1.weight",
        f"{block}.MlpBlock_0.Dense_0.bias": f"{prefix}.blocks.{{i}}.mlp.fc1.bias",
        f"{block}.MlpBlock_0.Dense_1.kernel": f"{prefix}.blocks.{{i}}.mlp.fc2.weight",
        f"{block}.MlpBlock_0.Dense_1.bias": f"{prefix}.blocks.{{i}}.mlp.fc2.bias",
        f"{upstream}.Transformer.encoder_norm.scale": f"{prefix}.norm.weight",
        f"{upstream}.Transformer.encoder_norm.bias": f"{prefix}.norm.bias",
    }


KEYS = {
    "img_encoder.cls": "vision.cls_token",
    "img_encoder.posembed_encoder.pos_embedding": "vision.pos_embed",
    "img_encoder.embedding.kernel": "vision.patch_embed.proj.weight",
    "img_encoder.embedding.bias": "vision.patch_embed.proj.bias",
    **transformer_keys("img_encoder", "vision"),
    "txt_encoder.token_embedding.embedding": "text.token_embed.weight",
    "txt_encoder.posembed_encoder.pos_embedding": "text.pos_embed",
    **transformer_keys("txt_encoder", "text"),
    "img_mlp1.kernel": "vision_projection.weight",
    "txt_mlp1.kernel": "text_projection.weight",
    "logit_scale": "logit_scale",
}


def to_torch(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Convert kernels (in, out) → (out, in), and (rows, columns, in, out) → (out, in, rows, columns)."""
    orders = {2: (1, 0), 4: (3, 2, 0, 1)}
    return {key: _permute(key, value, orders) for key, value in published.items()}


def to_jax(published: dict[str, Tensor]) -> dict[str, Tensor]:
    orders = {2: (1, 0), 4: (2, 3, 1, 0)}
    return {key: _permute(key, value, orders) for key, value in published.items()}


def _permute(key: str, value: Tensor, orders: Mapping[int, tuple[int, ...]]) -> Tensor:
    return value.permute(orders[value.dim()]).contiguous() if key.endswith(".kernel") and value.dim() in orders else value


def config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer the fields of FLIPConfig. The published code uses a fixed temperature of 0.01 if none is learned."""
    return {
        **tower_fields(weights, settings),
        "text_length": shape_of(weights, "text.pos_embed", 3)[1],
        "joint_width": shape_of(weights, "vision_projection.weight", 2)[0],
        "fixed_temperature": None if "logit_scale" in weights else 0.01,
    }


def resize_sincos(weights: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Compute the position table for another grid, as the published code does."""
    table = weights["vision.pos_embed"]
    if table.shape[1] == 1 + config.vision.patches:
        return weights
    return {**weights, "vision.pos_embed": sincos_table(table.shape[2], config.image_size // config.patch_size).to(table)}


def preprocess(size: int) -> Preprocess:
    """Prepare images as FLIP was evaluated; `interpolation=bicubic` is Pillow's, which smooths where an image shrinks."""
    return Preprocess(image_size=size, short_side=size, interpolation="tf1-bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD)


FAMILY = Family(
    name="flip",
    architecture="flip",
    table=KeyTable(KEYS),
    config=config,
    preprocess=preprocess,
    head_fields=HEAD_FIELDS,
    clean=to_torch,
    completed=to_jax,
    resized=resize_sincos,
    wrapper="target",
    folder=t5x.write,
)
