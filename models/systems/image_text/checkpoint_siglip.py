"""SigLIP (arXiv 2303.15343) in the layout of transformers: both towers, or its image tower by itself or under a classifier.

Tables are worked out from the names and shapes of the library's tensors, fields from the documentation of its configuration classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.bundle_schema import Preprocess
from models.checkpoints.family import ConfigFields, Family, depth_of, shape_of, squeeze
from models.checkpoints.hf_config import HFConfig
from models.checkpoints.hf_image_processor import HALF
from models.checkpoints.key_table import KeyTable
from models.systems.image_text.checkpoint_clip import blocks, vision_described, with_axes
from models.systems.image_text.checkpoint_common import HEAD_FIELDS
from models.systems.vit.checkpoint import resized, vit_config
from models.systems.vit.model import Pool

USUAL = {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh", "patch_size": 16}
"""Defaults of the configuration class that are not CLIP's."""
GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh")


def image_tower(theirs: str, ours: str = "") -> dict[str, str]:
    return {
        f"{theirs}embeddings.position_embedding.weight": f"{ours}pos_embed",
        f"{theirs}embeddings.patch_embedding.*": f"{ours}patch_embed.proj.*",
        **blocks(theirs, ours),
        f"{theirs}post_layernorm.*": f"{ours}norm.*",
    }


def head(theirs: str, ours: str = "") -> dict[str, str]:
    """Keys of what makes one vector of all patches. q, k and v are one matrix there and two here: `split` divides it."""
    pool = f"{ours}attn_pool"
    return {
        f"{theirs}head.probe": f"{pool}.query",
        f"{theirs}head.attention.in_proj_weight": f"{pool}.qkv.weight",
        f"{theirs}head.attention.in_proj_bias": f"{pool}.qkv.bias",
        f"{theirs}head.attention.out_proj.*": f"{pool}.proj.*",
        f"{theirs}head.layernorm.*": f"{pool}.norm.*",
        f"{theirs}head.mlp.fc1.*": f"{pool}.mlp.fc1.*",
        f"{theirs}head.mlp.fc2.*": f"{pool}.mlp.fc2.*",
    }


PAIR_KEYS = {
    **image_tower("vision_model.", "vision."),
    **head("vision_model.", "vision."),
    "text_model.embeddings.token_embedding.weight": "text.token_embed.weight",
    "text_model.embeddings.position_embedding.weight": "text.pos_embed",
    **blocks("text_model.", "text."),
    "text_model.final_layer_norm.*": "text.norm.*",
    "text_model.head.*": "text_projection.*",
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
}


def split(weights: dict[str, Tensor], config: Any, ours: str = "") -> dict[str, Tensor]:
    """ours: before the names of the image tower."""
    pool, table = f"{ours}attn_pool", f"{ours}pos_embed"
    kept = {key: value for key, value in weights.items() if not key.startswith(f"{pool}.qkv.")}
    for name in ("weight", "bias"):
        if (whole := weights.get(f"{pool}.qkv.{name}")) is not None:
            kept[f"{pool}.q.{name}"], kept[f"{pool}.kv.{name}"] = whole[: config.width], whole[config.width :]
    return kept | {table: resized({"pos_embed": kept[table]}, config)["pos_embed"]}


def without_head(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A classifier takes the mean of the patches, and its file may hold what it does not use."""
    return {key: value for key, value in with_axes(published).items() if ".head." not in key}


def encoder_described(description: Mapping[str, Any]) -> ConfigFields:
    stated = HFConfig.of(description)
    stated.require("vision_use_head", True, True)
    return _described(stated, description)


def classifier_described(description: Mapping[str, Any]) -> ConfigFields:
    return _described(HFConfig.of(description).section("vision_config"), description)


def pair_described(description: Mapping[str, Any]) -> ConfigFields:
    whole = HFConfig.of(description)
    vision, text = whole.section("vision_config"), whole.section("text_config")
    vision.require("vision_use_head", True, True)
    return {
        **_tanh_alone(_described(vision, description)),
        "text_depth": text.integer("num_hidden_layers", 12),
        "text_heads": text.integer("num_attention_heads", 12),
        "text_norm_eps": text.number("layer_norm_eps", 1e-6),
        "text_tanh_gelu": text.activation("gelu_pytorch_tanh", GELU)["tanh_gelu"],
        "padding": text.index("pad_token_id", 1),
    }


def pair_config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """The fields of SigLIPConfig that weights tell."""
    own = {key.removeprefix("vision."): value for key, value in weights.items() if key.startswith("vision.")}
    vision = vit_config(own, settings)
    vocabulary, text_width = shape_of(weights, "text.token_embed.weight", 2)
    return {
        **{name: vision[name] for name in ("image_size", "patch_size", "width", "depth", "mlp_ratio")},
        "vocabulary": vocabulary,
        "text_width": text_width,
        "text_depth": depth_of(weights, "text.blocks"),
        "text_hidden": shape_of(weights, "text.blocks.0.mlp.fc1.weight", 2)[0],
        "text_length": shape_of(weights, "text.pos_embed", 3)[1],
        "joint_width": shape_of(weights, "text_projection.weight", 2)[0],
    }


def _described(stated: HFConfig, description: Mapping[str, Any]) -> ConfigFields:
    whole = HFConfig(USUAL | dict(stated.content), stated.where)
    fields = vision_described(whole, description)
    return {**fields, "cut_edge": fields["image_size"] % whole.integer("patch_size", 16) != 0}


def _tanh_alone(fields: ConfigFields) -> ConfigFields:
    """Without a field that the config of a pair lacks; `GELU` alone is accepted."""
    return {name: value for name, value in fields.items() if name != "quick_gelu"}


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

PAIR = Family(
    name="transformers SigLIP",
    architecture="siglip",
    table=KeyTable(PAIR_KEYS),
    config=pair_config,
    described=pair_described,
    tidy=with_axes,
    resized=lambda weights, config: split(weights, config, "vision."),
    head_fields=HEAD_FIELDS,
    preprocess=preprocess,
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
