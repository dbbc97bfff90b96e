"""Rev-ViT and Rev-MViT (arXiv 2302.04869): SlowFast's files, and minREV's, of which none was published.

A Rev-ViT is a `ViT` with a reversible trunk; whatever else SlowFast makes reversible is a `RevMViT`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from models.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD, Family, Fields, UnlikeFamily, resize_and_crop
from models.checkpoints.key_table import KeyTable
from models.systems.mvit import slowfast_config
from models.systems.mvit.model import Activation
from models.systems.mvit.reversible import PUBLISHED, Fusion
from models.systems.mvit.trunk import Positions
from models.systems.vit.checkpoint import resized, vit_config
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
    **{f"F.attn.{name}": f"attn.{name}" for name in slowfast_config.POOLING},
    "pre_q_fuse.fuse_fn.fc1.*": "fusion_mlp.fc1.*",
    "pre_q_fuse.fuse_fn.fc2.*": "fusion_mlp.fc2.*",
    "pre_q_fuse.norm.*": "fusion_norm.*",
    "res_proj.*": "proj.*",
}
"""No file with a norm before the MLP of a fusion is known: where it would stand in one is a guess."""

VIT_KEYS = {
    **slowfast_config.ENDS,
    "pos_embed": "pos_embed",
    **{f"rev_backbone.layers.{{i}}.{theirs}": f"blocks.{{i}}.{ours}" for theirs, ours in BLOCK.items()},
}

MVIT_KEYS = {
    **slowfast_config.ENDS,
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
    "avg": Fusion.MEAN,
    "add": Fusion.SUM,
    "max": Fusion.MAXIMUM,
    "min": Fusion.MINIMUM,
    "concat": Fusion.CONCATENATION,
}


IRREVERSIBLE = ("REL_POS_SPATIAL", "REL_POS_TEMPORAL", "RESIDUAL_POOLING", "LAYER_SCALE_INIT_VALUE")
"""Keys of the section MVIT that no reversible model sets."""


def fused(keys: Mapping[str, str]) -> dict[str, str]:
    """A table of q, k and v as three matrices → one of them as one."""
    return {theirs.replace("{q,k,v}", "qkv"): ours for theirs, ours in keys.items()}


def without_class_token(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The published configuration of Rev-MViT on Kinetics-400 asks for a class token, which its model cannot have."""
    idle = [key for key in ("cls_token", "pos_embed_class") if key in published]
    if not idle or not any(key.startswith("rev_backbone.") for key in published):
        return published
    warnings.warn(f"{', '.join(idle)}: left out, for a reversible model has no class token", stacklevel=2)
    return {key: value for key, value in published.items() if key not in idle}


def vit_fields(configuration: slowfast_config.Configuration) -> Fields:
    """ViTConfig's fields in a configuration of SlowFast. Raises UnlikeFamily for what only RevMViT can be."""
    differences = unlike_vit(configuration)
    if differences:
        raise UnlikeFamily(f"its configuration is not that of a Rev-ViT: {', '.join(differences)}")
    mvit, trunk = configuration["MVIT"], slowfast_config.trunk_fields(configuration)
    taken = ("image_size", "channels", "classes", "width", "depth", "heads", "qkv_bias", "drop_path")
    return {"patch_size": mvit["PATCH_STRIDE"][0], **{name: trunk[name] for name in taken}}


def _sets(*keys: str) -> Callable[[slowfast_config.Configuration], bool]:
    """Whether a configuration sets one of these keys of the section MVIT to something."""
    return lambda configuration: any(configuration["MVIT"].get(key) for key in keys)


def _crop(configuration: slowfast_config.Configuration) -> int:
    return int(configuration["DATA"]["TRAIN_CROP_SIZE"])


def _stride(configuration: slowfast_config.Configuration) -> list[int]:
    return list(configuration["MVIT"]["PATCH_STRIDE"])


UNLIKE_VIT: Mapping[str, Callable[[slowfast_config.Configuration], bool]] = {
    "it takes clips": lambda c: not c["MVIT"].get("PATCH_2D", False),
    "its patches are not square": lambda c: len(set(_stride(c))) > 1,
    "its patches overlap": lambda c: list(c["MVIT"]["PATCH_KERNEL"]) != _stride(c),
    "its patches are padded": lambda c: any(c["MVIT"]["PATCH_PADDING"]),
    "its images are no whole number of patches": lambda c: _crop(c) % _stride(c)[0] != 0,
    "its positions are not one table": lambda c: slowfast_config.trunk_fields(c)["positions"] is not Positions.JOINT,
    "it pools": _sets("POOL_Q_STRIDE", "POOL_KV_STRIDE", "POOL_KV_STRIDE_ADAPTIVE"),
    "its width or its heads grow": _sets("DIM_MUL", "HEAD_MUL"),
    "it has blocks that are not reversible": lambda c: bool(c["MVIT"]["REV"].get("BUFFER_LAYERS")),
    "its streams are not concatenated": lambda c: c["MVIT"]["REV"].get("RESPATH_FUSE", "concat") != "concat",
    "the mean comes before the norm": _sets("USE_MEAN_POOLING"),
    "it sets what no reversible model has": _sets(*IRREVERSIBLE),
    "there is dropout before the head": lambda c: slowfast_config.trunk_fields(c)["dropout"] != 0.0,
    "its scores are no softmax": lambda c: slowfast_config.trunk_fields(c)["activation"] != Activation.SOFTMAX,
}
"""Difference of a reversible MViT from a reversible ViT → whether SlowFast's configuration shows it."""


def unlike_vit(configuration: slowfast_config.Configuration) -> list[str]:
    if not slowfast_config.is_reversible(configuration):
        return ["it is not reversible"]
    return [difference for difference, holds in UNLIKE_VIT.items() if holds(configuration)]


def is_plain(configuration: slowfast_config.Configuration) -> bool:
    """Whether it is that of a reversible ViT."""
    return not unlike_vit(configuration)


def mvit_fields(configuration: slowfast_config.Configuration) -> Fields:
    """RevMViTConfig's fields in a configuration of SlowFast."""
    if not slowfast_config.is_reversible(configuration) or is_plain(configuration):
        raise UnlikeFamily("its configuration is not that of a Rev-MViT")
    mvit, rev = configuration["MVIT"], configuration["MVIT"]["REV"]
    strangers = [key for key in IRREVERSIBLE if mvit.get(key)]
    if strangers:
        raise ValueError(f"MVIT.{strangers[0]}: no reversible model has it")
    transitions = rev.get("BUFFER_LAYERS", [])
    if transitions and rev.get("RES_PATH", "conv") != "conv":
        raise ValueError(f"MVIT.REV.RES_PATH: {rev['RES_PATH']!r} is not supported, only 'conv'")
    final = rev.get("RESPATH_FUSE", "concat")
    if final not in FUSIONS:
        raise ValueError(f"MVIT.REV.RESPATH_FUSE: {final!r} is not supported, only {', '.join(FUSIONS)}")
    return {
        **slowfast_config.trunk_fields(configuration),
        "transitions": transitions,
        **(stage_fusion(rev.get("PRE_Q_FUSION", "avg")) if transitions else {}),
        "final_fusion": FUSIONS[final],
        "mean_first": mvit.get("USE_MEAN_POOLING", False),
    }


def stage_fusion(text: str) -> Fields:
    """avg, add, max, min, concat, concat_linear_M, ln+concat_linear_M; with _drop behind it there is dropout, of a rate that is 0."""
    if text in FUSIONS:
        return {"stage_fusion": FUSIONS[text], "stage_mlp_ratio": None, "stage_norm": False}
    match = re.fullmatch(r"(ln\+)?concat_linear_(\d+(?:\.\d+)?)(_drop)?", text)
    if match is None:
        raise ValueError(f"MVIT.REV.PRE_Q_FUSION: {text!r} is not supported, only {', '.join(FUSIONS)} and [ln+]concat_linear_M[_drop]")
    return {"stage_fusion": Fusion.CONCATENATION, "stage_mlp_ratio": float(match[2]), "stage_norm": match[1] is not None}


def minrev_config(weights: Mapping[str, Tensor], settings: Fields) -> Fields:
    """The fields of ViTConfig; the number of heads is not told by the usual 64 channels, for the published recipe has 16."""
    fields = vit_config(weights, settings)
    fields.pop("heads", None)
    return fields


REVERSIBLE: dict[str, Any] = {"reversible": True, "proportional_attention": True}

VIT = Family(
    name="rev_vit",
    architecture="vit",
    table=KeyTable(VIT_KEYS),
    config=vit_config,
    resized=resized,
    defaults=REVERSIBLE,
    described=slowfast_config.described_by(vit_fields),
    tidy=without_class_token,
    preprocess=resize_and_crop(256 / 224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    headless=True,
    wrapper="model_state",
)

MVIT = Family(
    name="rev_mvit",
    architecture="rev_mvit",
    table=KeyTable(MVIT_KEYS),
    config=lambda weights, settings: slowfast_config.published_fields(weights, settings, PUBLISHED),
    resized=slowfast_config.resized,
    described=slowfast_config.described_by(mvit_fields),
    tidy=without_class_token,
    preprocess=resize_and_crop(256 / 224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    wrapper="model_state",
)

MINREV = Family(
    name="minrev",
    architecture="vit",
    table=KeyTable(MINREV_KEYS),
    config=minrev_config,
    resized=resized,
    defaults={**REVERSIBLE, "pool": Pool.MEAN, "mlp_norm_eps": 1e-5, "final_norm_eps": 1e-5},
    preprocess=resize_and_crop(1.0, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    headless=True,
    wrapper=None,
)

VIT_FUSED = replace(VIT, name="rev_vit_fused", table=KeyTable(fused(VIT_KEYS)))
MVIT_FUSED = replace(MVIT, name="rev_mvit_fused", table=KeyTable(fused(MVIT_KEYS)), preprocess=slowfast_config.preprocess_video)
"""q, k and v as one matrix; the published Rev-MViT of images has three, that of clips one."""
