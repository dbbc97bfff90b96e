"""FLIP, CiT and MAWS: pairs of a vision and a text tower. Imports no torch."""

from __future__ import annotations

from typing import Any

from models.registry import Architecture, Native, Purpose, SizeTable, System


def _tokens(config: Any) -> int:
    return int(config.vision.patches + config.vision.special_tokens)


ZERO_SHOT = Purpose(lambda config: "zero-shot")

SYSTEM = System(
    architectures=(
        Architecture("maws_clip", "models.pairs.maws:MAWSClip", ZERO_SHOT, Native("pair", _tokens, "models.pairs.native:maws")),
        Architecture("flip", "models.pairs.flip:FLIP", ZERO_SHOT, Native("pair", _tokens, "models.pairs.native:flip")),
        Architecture("cit", "models.pairs.cit:CiT", ZERO_SHOT, Native("pair", _tokens, "models.pairs.native:cit")),
    ),
    sizes=(
        SizeTable("MAWS", "vit", "arXiv 2303.13496", "models.pairs.maws:VISION_SIZES"),
        SizeTable("MAWS", "maws_clip", "arXiv 2303.13496", "models.pairs.maws:CLIP_SIZES"),
        SizeTable("FLIP", "flip", "arXiv 2212.00794", "models.pairs.flip:PUBLISHED"),
        SizeTable("CiT", "cit", "arXiv 2301.02241", "models.pairs.cit:PUBLISHED"),
    ),
    families={
        "maws": "models.pairs.published_maws:FAMILY",
        "maws_clip": "models.pairs.published_maws:CLIP",
        "flip": "models.pairs.published_flip:FAMILY",
        "cit": "models.pairs.published_cit:FAMILY",
        "cit_augreg": "models.pairs.published_cit:AUGREG",
        "cit_swag": "models.pairs.published_cit:SWAG",
    },
)
