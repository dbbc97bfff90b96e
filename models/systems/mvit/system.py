"""MViT, Rev-MViT and the published sizes of Rev-ViT. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.bundle_schema import Clip
from models.registry import Architecture, BundleDefaults, DummyForward, SizeTable, System, ViewCounts

SOMETHING_CLASS_COUNT = 174
"""Classes of Something-Something v2 (arXiv 1706.04261): no other published test has as many."""


def _clip(config: Any) -> Clip | None:
    return None if config.images else Clip.like_slowfast(config.frames)


def _tokens(config: Any) -> int:
    times, rows, columns = config.patch_grid
    return int(times * rows * columns + config.special_tokens)


def _route_of(config: Mapping[str, Any]) -> str | None:
    """Return the route of a model; None for a model that classifies boxes, since it needs a detector."""
    return None if config.get("boxes") else "classify"


def _views(config: Mapping[str, Any]) -> ViewCounts:
    """Return the views of the published tests: five on Kinetics-400, and three crops of each for the largest model, at 312 px.

    Tests on Something-Something v2 use three crops of one view.
    """
    if config.get("classes") == SOMETHING_CLASS_COUNT:
        return ViewCounts(1, crops=3)
    return ViewCounts(5, crops=3 if config.get("image_size") == 312 else 1)


PURPOSE = BundleDefaults(lambda config: "classify" if config.images else "actions", clip=_clip, classes=lambda config: int(config.classes))
NATIVE = DummyForward("sample", _tokens, "models.layers.forward:images_or_clips")
FORWARDS = {"classify": "models.systems.mvit.steps:classify"}
STEPS = {"actions": "models.systems.mvit.steps:clip_steps"}
PRECISE = frozenset({"actions"})


def _architecture(name: str, model: str) -> Architecture:
    return Architecture(name, model, PURPOSE, NATIVE, FORWARDS, STEPS, PRECISE, merges=False, route_of=_route_of, views=_views)


SYSTEM = System(
    architectures=(
        _architecture("mvit", "models.systems.mvit.model:MViT"),
        _architecture("rev_mvit", "models.systems.mvit.reversible:RevMViT"),
    ),
    sizes=(
        SizeTable("MViT", "mvit", "arXiv 2112.01526", "models.systems.mvit.model:PUBLISHED"),
        SizeTable("Rev-ViT", "vit", "arXiv 2302.04869", "models.systems.mvit.reversible:PUBLISHED_VITS"),
        SizeTable("Rev-MViT", "rev_mvit", "arXiv 2302.04869", "models.systems.mvit.reversible:PUBLISHED"),
    ),
    families={
        "mvit": "models.systems.mvit.checkpoint:FAMILY",
        "mvit_separate": "models.systems.mvit.checkpoint:SEPARATE",
        "rev_vit": "models.systems.mvit.checkpoint_reversible:VIT",
        "rev_vit_fused": "models.systems.mvit.checkpoint_reversible:VIT_FUSED",
        "rev_mvit": "models.systems.mvit.checkpoint_reversible:MVIT",
        "rev_mvit_fused": "models.systems.mvit.checkpoint_reversible:MVIT_FUSED",
        "minrev": "models.systems.mvit.checkpoint_reversible:MINREV",
    },
)
