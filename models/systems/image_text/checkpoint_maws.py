"""MAWS (arXiv 2303.13496): its vision encoders, with or without a head, and its pairs with XLM-R."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.bundle_schema import Preprocess
from models.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD, ConfigFields, Family, KeyTable, resize_and_crop, shape_of
from models.systems.image_text.checkpoint_common import HEAD_FIELDS, resize_positions, tower_fields
from models.systems.vit.checkpoint import TIMM_KEYS, resize_position_table, vit_config

LAYER = {
    "self_attn.in_proj_weight": "attn.qkv.weight",
    "self_attn.in_proj_bias": "attn.qkv.bias",
    "self_attn.out_proj.*": "attn.proj.*",
    "linear1.*": "mlp.fc1.*",
    "linear2.*": "mlp.fc2.*",
    "norm1.*": "norm1.*",
    "norm2.*": "norm2.*",
}

OLDER_LAYER = {
    "attention.input_projection.*": "attn.qkv.*",
    "attention.output_projection.*": "attn.proj.*",
    "residual_mlp.mlp.0.*": "mlp.fc1.*",
    "residual_mlp.mlp.3.*": "mlp.fc2.*",
    "attention_layer_norm.*": "norm1.*",
    "final_layer_norm.*": "norm2.*",
}
"""Names in earlier versions of the text library."""

_TEXT = "text_encoder.encoder.transformer"

CLIP_KEYS = {
    "logit_scale": "logit_scale",
    "vision_projection": "vision_projection",
    "text_projection": "text_projection",
    **{f"vision_encoder.{key}": f"vision.{ours}" for key, ours in TIMM_KEYS.items() if not key.startswith("head.")},
    f"{_TEXT}.token_embedding.weight": "text.token_embed.weight",
    f"{_TEXT}.positional_embedding.embedding.weight": "text.pos_embed.weight",
    f"{_TEXT}.embedding_layer_norm.*": "text.embed_norm.*",
    **{f"{_TEXT}.layers.layers.{{i}}.{key}": f"text.blocks.{{i}}.{ours}" for key, ours in LAYER.items()},
    **{f"{_TEXT}.layers.layers.{{i}}.{key}": f"text.blocks.{{i}}.{ours}" for key, ours in OLDER_LAYER.items()},
    **{f"{_TEXT}.layers.{{i}}.{key}": f"text.blocks.{{i}}.{ours}" for key, ours in OLDER_LAYER.items()},
}


def config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    fields = vit_config(weights, settings)
    return {**fields, "classes": fields.get("classes", 0)}


def clip_config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    return {
        **tower_fields(weights, settings),
        "positions": shape_of(weights, "text.pos_embed.weight", 2)[0],
        "joint_width": shape_of(weights, "vision_projection", 2)[1],
    }


def preprocess(size: int) -> Preprocess:
    """Fine-tuned models, 512 or 518 px, were evaluated on whole images squeezed into a square; `fit=crop` keeps their proportions."""
    return Preprocess(image_size=size, short_side=size, fit="squeeze" if size > 224 else "crop", mean=IMAGENET_MEAN, std=IMAGENET_STD)


FAMILY = Family(
    name="maws",
    architecture="vit",
    table=KeyTable(TIMM_KEYS),
    config=config,
    resized=resize_position_table,
    defaults={"proportional_attention": True},
    preprocess=preprocess,
    headless=True,
    wrapper=None,
)
"""Family of MAWS's image encoders. Encoders that were only trained as masked autoencoders look the same; they need
`proportional_attention=false`."""

CLIP = Family(
    name="maws_clip",
    architecture="maws_clip",
    table=KeyTable(CLIP_KEYS),
    config=clip_config,
    preprocess=resize_and_crop(1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    head_fields=HEAD_FIELDS,
    resized=resize_positions,
    wrapper=None,
)
