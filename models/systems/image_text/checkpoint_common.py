"""Key tables and config fields that FLIP, CiT and MAWS share: pairs of a vision and a text tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.checkpoints.family import ConfigFields, depth_of, mlp_ratio_of, published_heads, shape_of, side_of
from models.layers.patches import resize_table

HEAD_FIELDS = ("heads", "text_heads")


def tower_fields(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer the fields that the configs of FLIP, CiT and MAWS share."""
    width, _, patch_size, _ = shape_of(weights, "vision.patch_embed.proj.weight", 4)
    _, positions, _ = shape_of(weights, "vision.pos_embed", 3)
    vocabulary, text_width = shape_of(weights, "text.token_embed.weight", 2)
    heads = {"heads": published_heads(width), "text_heads": published_heads(text_width)}
    return {
        "image_size": settings.get("image_size") or patch_size * side_of(positions - 1),
        "patch_size": patch_size,
        "width": width,
        "depth": depth_of(weights, "vision.blocks"),
        "mlp_ratio": mlp_ratio_of(shape_of(weights, "vision.blocks.0.mlp.fc1.weight", 2)[0], width),
        "vocabulary": vocabulary,
        "text_width": text_width,
        "text_depth": depth_of(weights, "text.blocks"),
        "text_hidden": shape_of(weights, "text.blocks.0.mlp.fc1.weight", 2)[0],
        **{name: count for name, count in heads.items() if count is not None},
    }


def resize_positions(weights: dict[str, Tensor], config: Any, *, align_corners: bool = False) -> dict[str, Tensor]:
    """Resize the vision tower's position table for another image size."""
    table = resize_table(weights["vision.pos_embed"], config.vision.patches, special=1, align_corners=align_corners)
    return {**weights, "vision.pos_embed": table}
