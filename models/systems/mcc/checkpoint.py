"""MCC (arXiv 2301.08247), trained on CO3D-v2. Its names are ours; `pos_embed` is a table at the top level and a linear layer further
down."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.checkpoints.family import (
    ConfigFields,
    Family,
    KeyTable,
    UnlikeFamily,
    block_fields,
    decoder_fields,
    depth_of,
    mlp_ratio_of,
    shape_of,
    side_of,
    squeeze,
)
from models.systems.vit.checkpoint import BLOCK_KEYS, DECODER_KEYS, ENCODER_KEYS

KEYS = {
    **ENCODER_KEYS,
    "norm.*": "norm.*",
    "cls_token_xyz": "cls_token_xyz",
    "xyz_pos_embed.two_d_pos_embed": "xyz_pos_embed.two_d_pos_embed",
    "xyz_pos_embed.cls_token": "xyz_pos_embed.cls_token",
    "xyz_pos_embed.invalid_xyz_token": "xyz_pos_embed.invalid_xyz_token",
    "xyz_pos_embed.pos_embed.*": "xyz_pos_embed.pos_embed.*",
    **{f"xyz_pos_embed.{key}": f"xyz_pos_embed.{name}" for key, name in BLOCK_KEYS.items()},
    **{key.replace("blocks.", "blocks_xyz."): name.replace("blocks.", "blocks_xyz.") for key, name in BLOCK_KEYS.items()},
    "norm_xyz.*": "norm_xyz.*",
    **DECODER_KEYS,
    "decoder_xyz_pos_embed.pos_embed.*": "decoder_xyz_pos_embed.pos_embed.*",
}


def config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer the fields of MCCConfig. Windows always have 12 heads."""
    width, channels, patch_size, _ = shape_of(weights, "patch_embed.proj.weight", 4)
    _, positions, _ = shape_of(weights, "pos_embed", 3)
    _, window_positions, _ = shape_of(weights, "xyz_pos_embed.two_d_pos_embed", 3)
    hidden, _ = shape_of(weights, "xyz_pos_embed.blocks.0.mlp.fc1.weight", 2)
    outputs, _ = shape_of(weights, "decoder_pred.weight", 2)
    if outputs not in (4, 769):
        raise UnlikeFamily(f"decoder_pred.weight has {outputs} rows where MCC has 4 or 769")
    fields: ConfigFields = {
        "image_size": patch_size * side_of(positions - 1),
        "patch_size": patch_size,
        "channels": channels,
        "width": width,
        "window": side_of(window_positions - 1),
        "window_depth": depth_of(weights, "xyz_pos_embed.blocks"),
        "window_mlp_ratio": mlp_ratio_of(hidden, width),
        "regress_colour": outputs == 4,
        **decoder_fields(weights),
        **block_fields(weights, width),
    }
    if width % 12 == 0:
        fields["window_heads"] = 12
    return fields


FAMILY = Family(
    name="mcc",
    architecture="mcc",
    table=KeyTable(KEYS),
    config=config,
    preprocess=squeeze,
    head_fields=("heads", "window_heads", "decoder_heads"),
)
"""Family of MCC. Images are cropped or padded to a square before, together with their points."""
