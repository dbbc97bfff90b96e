"""Rev-ViT and Rev-MViT (arXiv 2302.04869): SlowFast's checkpoints, and minREV's, of which none was published.

A Rev-ViT is a `ViT` with a reversible trunk; all other reversible models of SlowFast are `RevMViT`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from models.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD, ConfigFields, Family, KeyTable, UnlikeFamily, resize_and_crop
from models.systems.mvit import checkpoint as slowfast
from models.systems.mvit.model import Activation
from models.systems.mvit.reversible import PUBLISHED, StreamFusion
from models.systems.mvit.trunk import Positions
from models.systems.vit.checkpoint import resize_position_table, vit_config
from models.systems.vit.model import Pool

BLOCK = {
    "F.norm.*": "norm1.*",
    "F.attn.{q,k,v}.*": "attn.qkv.*",
    "F.attn.proj.*": "attn.proj.*",
    "G.norm.*": "norm2.*",
    "G.mlp.fc1.*": "mlp.fc1.*",
    "G.mlp.fc2.*": "mlp.fc2.*",
}

POOLING_BLOCK = {
    **BLOCK,
    **{f"F.attn.{name}": f"attn.{name}" for name in slowfast.POOLING_KEYS},
    "pre_q_fuse.fuse_fn.fc1.*": "fusion_mlp.fc1.*",
    "pre_q_fuse.fuse_fn.fc2.*": "fusion_mlp.fc2.*",
    "pre_q_fuse.norm.*": "fusion_norm.*",
    "res_proj.*": "proj.*",
}
"""Keys of a reversible pooling block. No file with a norm before a fusion's MLP is known: its key is a guess."""

VIT_KEYS = {
    **slowfast.END_KEYS,
    "pos_embed": "pos_embed",
    **{f"rev_backbone.layers.{{i}}.{theirs}": f"blocks.{{i}}.{ours}" for theirs, ours in BLOCK.items()},
}

MVIT_KEYS = {
    **slowfast.END_KEYS,
    **{f"rev_backbone.layers.{{i}}.{theirs}": f"blocks.{{i}}.{ours}" for theirs, ours in POOLING_BLOCK.items()},
}

MINREV_KEYS = {
    "patch_embed.*": "patch_embed.proj.*",
    "pos_embeddings": "pos_embed",
    "layers.{i}.F.norm.*": "blocks.{i}.norm1.*",
    "layers.{i}.F.attn.in_proj_weight": "blocks.{i}.attn.qkv.weight",
    "layers.{i}.F.attn.in_proj_bias": "blocks.{i}.attn.qkv.bias",
    "layers.{i}.F.attn.out_proj.*": "blocks.{i}.attn.proj.*",
    "layers.{i}.G.norm.*": "blocks.{i}.norm2.*",
    "layers.{i}.G.mlp.0.*": "blocks.{i}.mlp.fc1.*",
    "layers.{i}.G.mlp.2.*": "blocks.{i}.mlp.fc2.*",
    "norm.*": "fc_norm.*",
    "head.*": "head.*",
}

FUSIONS = {
    "avg": StreamFusion.MEAN,
    "add": StreamFusion.SUM,
    "max": StreamFusion.MAXIMUM,
    "min": StreamFusion.MINIMUM,
    "concat": StreamFusion.CONCATENATION,
}


IRREVERSIBLE = ("REL_POS_SPATIAL", "REL_POS_TEMPORAL", "RESIDUAL_POOLING", "LAYER_SCALE_INIT_VALUE")
"""Keys of the section MVIT that no reversible model sets."""


def fuse_qkv(keys: Mapping[str, str]) -> dict[str, str]:
    """Convert a table with q, k and v as three matrices to one with a single matrix."""
    return {upstream_key.replace("{q,k,v}", "qkv"): key for upstream_key, key in keys.items()}


def drop_class_token(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Drop the class token that the published configuration of Rev-MViT on Kinetics-400 sets, though its model cannot have one."""
    unused = [key for key in ("cls_token", "pos_embed_class") if key in published]
    if not unused or not any(key.startswith("rev_backbone.") for key in published):
        return published
    warnings.warn(f"{', '.join(unused)}: left out, for a reversible model has no class token", stacklevel=2)
    return {key: value for key, value in published.items() if key not in unused}


def vit_fields(configuration: slowfast.Configuration) -> ConfigFields:
    """Read ViTConfig's fields from a configuration of SlowFast. Raises UnlikeFamily if only RevMViT fits."""
    differences = differences_from_vit(configuration)
    if differences:
        raise UnlikeFamily(f"its configuration is not that of a Rev-ViT: {', '.join(differences)}")
    mvit, trunk = configuration["MVIT"], slowfast.trunk_fields(configuration)
    field_names = ("image_size", "channels", "classes", "width", "depth", "heads", "qkv_bias", "drop_path")
    return {"patch_size": mvit["PATCH_STRIDE"][0], **{name: trunk[name] for name in field_names}}


def _sets(*keys: str) -> Callable[[slowfast.Configuration], bool]:
    """Return a predicate: True if a configuration sets one of these keys of the section MVIT to a true value."""
    return lambda configuration: any(configuration["MVIT"].get(key) for key in keys)


def _stride(configuration: slowfast.Configuration) -> list[int]:
    return list(configuration["MVIT"]["PATCH_STRIDE"])


VIT_DIFFERENCES: Mapping[str, Callable[[slowfast.Configuration], bool]] = {
    "it takes clips": lambda c: not c["MVIT"].get("PATCH_2D", False),
    "its patches are not square": lambda c: len(set(_stride(c))) > 1,
    "its patches overlap": lambda c: list(c["MVIT"]["PATCH_KERNEL"]) != _stride(c),
    "its patches are padded": lambda c: any(c["MVIT"]["PATCH_PADDING"]),
    "its images are no whole number of patches": lambda c: int(c["DATA"]["TRAIN_CROP_SIZE"]) % _stride(c)[0] != 0,
    "its positions are not one table": lambda c: slowfast.trunk_fields(c)["positions"] is not Positions.JOINT,
    "it pools": _sets("POOL_Q_STRIDE", "POOL_KV_STRIDE", "POOL_KV_STRIDE_ADAPTIVE"),
    "its width or its heads grow": _sets("DIM_MUL", "HEAD_MUL"),
    "it has blocks that are not reversible": lambda c: bool(c["MVIT"]["REV"].get("BUFFER_LAYERS")),
    "its streams are not concatenated": lambda c: c["MVIT"]["REV"].get("RESPATH_FUSE", "concat") != "concat",
    "the mean comes before the norm": _sets("USE_MEAN_POOLING"),
    "it sets what no reversible model has": _sets(*IRREVERSIBLE),
    "there is dropout before the head": lambda c: slowfast.trunk_fields(c)["dropout"] != 0.0,
    "its scores are no softmax": lambda c: slowfast.trunk_fields(c)["activation"] != Activation.SOFTMAX,
}
"""Difference of a reversible MViT from a reversible ViT → predicate on SlowFast's configuration."""


def differences_from_vit(configuration: slowfast.Configuration) -> list[str]:
    if not slowfast.is_reversible(configuration):
        return ["it is not reversible"]
    return [difference for difference, holds in VIT_DIFFERENCES.items() if holds(configuration)]


def is_rev_vit(configuration: slowfast.Configuration) -> bool:
    """Return True if the configuration is that of a reversible ViT."""
    return not differences_from_vit(configuration)


def mvit_fields(configuration: slowfast.Configuration) -> ConfigFields:
    """Read RevMViTConfig's fields from a configuration of SlowFast."""
    if not slowfast.is_reversible(configuration) or is_rev_vit(configuration):
        raise UnlikeFamily("its configuration is not that of a Rev-MViT")
    mvit, rev = configuration["MVIT"], configuration["MVIT"]["REV"]
    unsupported = [key for key in IRREVERSIBLE if mvit.get(key)]
    if unsupported:
        raise ValueError(f"MVIT.{unsupported[0]}: no reversible model has it")
    transitions = rev.get("BUFFER_LAYERS", [])
    if transitions and rev.get("RES_PATH", "conv") != "conv":
        raise ValueError(f"MVIT.REV.RES_PATH: {rev['RES_PATH']!r} is not supported, only 'conv'")
    final_fusion = rev.get("RESPATH_FUSE", "concat")
    if final_fusion not in FUSIONS:
        raise ValueError(f"MVIT.REV.RESPATH_FUSE: {final_fusion!r} is not supported, only {', '.join(FUSIONS)}")
    return {
        **slowfast.trunk_fields(configuration),
        "transitions": transitions,
        **(stage_fusion(rev.get("PRE_Q_FUSION", "avg")) if transitions else {}),
        "final_fusion": FUSIONS[final_fusion],
        "mean_first": mvit.get("USE_MEAN_POOLING", False),
    }


def stage_fusion(text: str) -> ConfigFields:
    """Parse a fusion: avg, add, max, min, concat, concat_linear_M, ln+concat_linear_M; a suffix _drop adds dropout, of a rate that is 0."""
    if text in FUSIONS:
        return {"stage_fusion": FUSIONS[text], "stage_mlp_ratio": None, "stage_norm": False}
    match = re.fullmatch(r"(ln\+)?concat_linear_(\d+(?:\.\d+)?)(_drop)?", text)
    if match is None:
        raise ValueError(f"MVIT.REV.PRE_Q_FUSION: {text!r} is not supported, only {', '.join(FUSIONS)} and [ln+]concat_linear_M[_drop]")
    return {"stage_fusion": StreamFusion.CONCATENATION, "stage_mlp_ratio": float(match[2]), "stage_norm": match[1] is not None}


def minrev_config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer the fields of ViTConfig, without the number of heads: the published recipe has 16, not heads of 64 channels."""
    fields = vit_config(weights, settings)
    fields.pop("heads", None)
    return fields


REVERSIBLE: dict[str, Any] = {"reversible": True, "proportional_attention": True}

VIT = Family(
    name="rev_vit",
    architecture="vit",
    table=KeyTable(VIT_KEYS),
    config=vit_config,
    resized=resize_position_table,
    defaults=REVERSIBLE,
    described=slowfast.make_describe(vit_fields),
    clean=drop_class_token,
    preprocess=resize_and_crop(256 / 224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    headless=True,
    wrapper="model_state",
)

MVIT = Family(
    name="rev_mvit",
    architecture="rev_mvit",
    table=KeyTable(MVIT_KEYS),
    config=lambda weights, settings: slowfast.published_fields(weights, settings, PUBLISHED),
    resized=slowfast.resize_positions,
    described=slowfast.make_describe(mvit_fields),
    clean=drop_class_token,
    preprocess=resize_and_crop(256 / 224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    wrapper="model_state",
)

MINREV = Family(
    name="minrev",
    architecture="vit",
    table=KeyTable(MINREV_KEYS),
    config=minrev_config,
    resized=resize_position_table,
    defaults={**REVERSIBLE, "pool": Pool.MEAN, "mlp_norm_eps": 1e-5, "final_norm_eps": 1e-5},
    preprocess=resize_and_crop(1.0, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    headless=True,
    wrapper=None,
)

VIT_FUSED = replace(VIT, name="rev_vit_fused", table=KeyTable(fuse_qkv(VIT_KEYS)))
MVIT_FUSED = replace(MVIT, name="rev_mvit_fused", table=KeyTable(fuse_qkv(MVIT_KEYS)), preprocess=slowfast.preprocess_video)
"""Family with q, k and v as one matrix; the published Rev-MViT of images has three, that of clips has one."""
