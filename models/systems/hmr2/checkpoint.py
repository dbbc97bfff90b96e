"""HMR2 (4D-Humans, arXiv 2305.20091). The body mesh in its files is licensed: an import leaves it behind,
`models.people.smpl.SMPLBody` reads it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.checkpoints.family import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ConfigFields,
    Family,
    KeyTable,
    UnlikeFamily,
    depth_of,
    mlp_ratio_of,
    published_heads,
    resize_and_crop,
    shape_of,
)
from models.people.smpl import CHECKPOINT_PREFIX
from models.systems.hmr2.model import HMR2Config, QueryInit
from models.systems.vit.checkpoint import BLOCK_KEYS

_LAYER = "smpl_head.transformer.transformer.layers.{i}"
_BLOCK = "decoder.blocks.{i}"

KEYS = {
    "backbone.pos_embed": "backbone.pos_embed",
    "backbone.patch_embed.proj.*": "backbone.patch_embed.proj.*",
    **{f"backbone.{key}": f"backbone.{ours}" for key, ours in BLOCK_KEYS.items()},
    "backbone.last_norm.*": "backbone.norm.*",
    "smpl_head.transformer.pos_embedding": "decoder.pos_embed",
    "smpl_head.transformer.to_token_embedding.*": "decoder.token_embed.*",
    f"{_LAYER}.0.norm.*": f"{_BLOCK}.norm1.*",
    f"{_LAYER}.0.fn.to_qkv.*": f"{_BLOCK}.attn.qkv.*",
    f"{_LAYER}.0.fn.to_out.0.*": f"{_BLOCK}.attn.proj.*",
    f"{_LAYER}.1.norm.*": f"{_BLOCK}.norm2.*",
    f"{_LAYER}.1.fn.to_q.*": f"{_BLOCK}.cross.q.*",
    f"{_LAYER}.1.fn.to_kv.*": f"{_BLOCK}.cross.kv.*",
    f"{_LAYER}.1.fn.to_out.0.*": f"{_BLOCK}.cross.proj.*",
    f"{_LAYER}.2.norm.*": f"{_BLOCK}.norm3.*",
    f"{_LAYER}.2.fn.net.0.*": f"{_BLOCK}.mlp.fc1.*",
    f"{_LAYER}.2.fn.net.3.*": f"{_BLOCK}.mlp.fc2.*",
    "smpl_head.*": "decoder.readout.*",
    "smpl_head.decpose.*": "decoder.readout.decpose.*",
    "smpl_head.decshape.*": "decoder.readout.decshape.*",
    "smpl_head.deccam.*": "decoder.readout.deccam.*",
}

NOT_OURS = (CHECKPOINT_PREFIX, "discriminator.", "initialized")
"""The body mesh, the adversary of training, and a flag."""


def tidy(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {key: value for key, value in published.items() if not key.startswith(NOT_OURS)}


def config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer fields of HMR2Config from weights. `decoder_heads` must be set if its heads do not have 64 channels."""
    width, channels, patch_size, _ = shape_of(weights, "backbone.patch_embed.proj.weight", 4)
    _, positions, _ = shape_of(weights, "backbone.pos_embed", 3)
    hidden, _ = shape_of(weights, "backbone.blocks.0.mlp.fc1.weight", 2)
    decoder_width, query = shape_of(weights, "decoder.token_embed.weight", 2)
    inner, _ = shape_of(weights, "decoder.blocks.0.cross.q.weight", 2)
    decoder_hidden, _ = shape_of(weights, "decoder.blocks.0.mlp.fc1.weight", 2)
    decoder_heads = settings.get("decoder_heads") or (None if inner % 64 else inner // 64)
    if decoder_heads and inner % decoder_heads:
        raise UnlikeFamily(f"its decoder's attention has {inner} channels, which {decoder_heads} heads cannot share")
    heads = published_heads(width)
    return {
        "image_size": settings.get("image_size") or _image_size(positions - 1, patch_size, settings),
        "patch_size": patch_size,
        "channels": channels,
        "width": width,
        "depth": depth_of(weights, "backbone.blocks"),
        "mlp_ratio": mlp_ratio_of(hidden, width),
        "qkv_bias": "backbone.blocks.0.attn.qkv.bias" in weights,
        "query": QueryInit.ZERO if query == 1 else QueryInit.ESTIMATE,
        "decoder_width": decoder_width,
        "decoder_depth": depth_of(weights, "decoder.blocks"),
        "decoder_head_dim": inner // (decoder_heads or 1),
        "decoder_hidden": decoder_hidden,
        **({} if heads is None else {"heads": heads}),
        **({} if decoder_heads is None else {"decoder_heads": decoder_heads}),
    }


def _image_size(patches: int, patch_size: int, settings: ConfigFields) -> int:
    """Return the size of a square crop that has this number of patches once its sides are cut."""
    cut, ratio = settings.get("side_cut", HMR2Config.side_cut), settings.get("patch_ratio", HMR2Config.patch_ratio)
    for size in range(2 * cut + patch_size, 2 * cut + patch_size * (patches + 1), patch_size):
        rows, columns = HMR2Config(image_size=size, side_cut=cut, patch_size=patch_size, patch_ratio=ratio).grid
        if rows * columns == patches:
            return size
    raise UnlikeFamily(f"its position table has {patches} patches, which no square crop cut by {cut} columns a side has")


FAMILY = Family(
    name="hmr2",
    architecture="hmr2",
    table=KeyTable(KEYS),
    config=config,
    defaults={"proportional_attention": True},
    preprocess=resize_and_crop(1.0, IMAGENET_MEAN, IMAGENET_STD, "bilinear"),
    head_fields=("heads", "decoder_heads"),
    clean=tidy,
    dropped_note="the body mesh, which is licensed, and the adversary of training",
    wrapper="state_dict",
)
