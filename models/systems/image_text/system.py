"""FLIP, CiT, MAWS, CLIP and SigLIP: pairs of a vision and a text tower. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from models.registry import Architecture, BundleDefaults, DummyForward, SizeTable, System


def _tokens(config: Any) -> int:
    return int(config.patches + config.special_tokens)


def _is_linear(config: Mapping[str, Any]) -> bool:
    """Return True if patches can be projected: MoCo-v3's projector has batch norms and rectifiers, trained on class tokens alone."""
    return bool(config.get("tower", "moco") != "moco")


def _pair(name: str, model: str, pool: str, token_vectors: Callable[[Mapping[str, Any]], bool] = lambda config: True) -> Architecture:
    """Return a pair's architecture. pool: the pooling that the space was trained with, the only one."""
    return Architecture(
        name=name,
        model=model,
        bundle_defaults=BundleDefaults(lambda config: "zero-shot"),
        dummy_forward=DummyForward("pair", _tokens, f"models.systems.image_text.dummy_inputs:{name}"),
        forwards={"zero-shot": f"models.systems.image_text.forward:{name}"},
        precise_tasks=frozenset({"zero-shot"}),
        reader="models.systems.image_text.forward:make_tokenize_fn",
        pools=lambda config: (pool,),
        token_vectors=token_vectors,
    )


SYSTEM = System(
    architectures=(
        _pair("maws_clip", "models.systems.image_text.maws:MAWSClip", "cls"),
        _pair("flip", "models.systems.image_text.flip:FLIP", "mean"),
        _pair("cit", "models.systems.image_text.cit:CiT", "cls", _is_linear),
        _pair("clip", "models.systems.image_text.clip:CLIP", "cls"),
        _pair("siglip", "models.systems.image_text.siglip:SigLIP", "attention", lambda config: False),
    ),
    sizes=(
        SizeTable("MAWS", "vit", "arXiv 2303.13496", "models.systems.image_text.maws:VISION_SIZES"),
        SizeTable("MAWS", "maws_clip", "arXiv 2303.13496", "models.systems.image_text.maws:CLIP_SIZES"),
        SizeTable("FLIP", "flip", "arXiv 2212.00794", "models.systems.image_text.flip:PUBLISHED"),
        SizeTable("CLIP", "clip", "arXiv 2103.00020", "models.systems.image_text.clip:PUBLISHED"),
        SizeTable("SigLIP", "siglip", "arXiv 2303.15343", "models.systems.image_text.siglip:PUBLISHED"),
        SizeTable("CiT", "cit", "arXiv 2301.02241", "models.systems.image_text.cit:PUBLISHED"),
    ),
    families={
        "maws": "models.systems.image_text.checkpoint_maws:FAMILY",
        "maws_clip": "models.systems.image_text.checkpoint_maws:CLIP",
        "flip": "models.systems.image_text.checkpoint_flip:FAMILY",
        "cit": "models.systems.image_text.checkpoint_cit:FAMILY",
        "cit_augreg": "models.systems.image_text.checkpoint_cit:AUGREG",
        "cit_swag": "models.systems.image_text.checkpoint_cit:SWAG",
    },
    hub_classes={
        "CLIPModel": "models.systems.image_text.checkpoint_clip:CLIP",
        "CLIPVisionModel": "models.systems.image_text.checkpoint_clip:CLIP_VISION",
        "SiglipModel": "models.systems.image_text.checkpoint_siglip:PAIR",
        "SiglipVisionModel": "models.systems.image_text.checkpoint_siglip:VISION",
        "SiglipForImageClassification": "models.systems.image_text.checkpoint_siglip:CLASSIFIER",
    },
)
