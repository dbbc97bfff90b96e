"""Fills in the spec of an imported bundle: inputs, labels and ladder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.bundle import Clip, Preprocess, Rung, Sound, Space
from models.published.container import CheckpointError
from models.published.family import Family, Fields
from models.published.settings import CLIP_FIELDS, PREPROCESS_FIELDS, SOUND_FIELDS, SPACE_FIELDS
from models.registry import Architecture, Purpose

MERGING = frozenset({"classify", "embed", "actions"})
"""Tasks whose answers need no token of its own for each patch."""

LADDER_SHARES = (0.25, 0.5, 0.65, 0.8, 0.95)
"""Rungs of an imported bundle: the share of the patches that have merged at the end, evenly over the blocks. None is measured."""


def preprocess(family: Family, purpose: Purpose, config: Any, settings: Fields) -> Preprocess | None:
    size = purpose.size(config)
    if size is None:
        return None
    height, width = size
    usual = family.preprocess(min(size)).model_dump() | {"image_size": height, "image_width": None if width == height else width}
    return Preprocess.model_validate(usual | {key: value for key, value in settings.items() if key in PREPROCESS_FIELDS})


def clip(purpose: Purpose, config: Any, settings: Fields) -> Clip | None:
    usual = purpose.clip(config)
    chosen = {key: value for key, value in settings.items() if key in CLIP_FIELDS}
    return None if usual is None else Clip.model_validate(usual.model_dump() | chosen)


def sound(purpose: Purpose, config: Any, settings: Fields) -> Sound | None:
    usual = purpose.sound(config)
    chosen = {SOUND_FIELDS[key]: value for key, value in settings.items() if key in SOUND_FIELDS}
    return None if usual is None else Sound.model_validate(usual.model_dump() | chosen)


def space(purpose: Purpose, config: Any, settings: Fields) -> Space | None:
    usual = purpose.space(config)
    chosen = {key: value for key, value in settings.items() if key in SPACE_FIELDS}
    return None if usual is None else Space.model_validate(usual.model_dump() | chosen)


def label_names(file: Path, labels: Sequence[str] | None, known: Sequence[str], classes: int) -> list[str]:
    if labels is None:
        return list(known) or [f"class {index}" for index in range(classes)]
    if len(labels) != classes:
        raise CheckpointError(f"{file}: has {classes or 'no'} classes, but {len(labels)} labels were given")
    return list(labels)


def ladder(architecture: Architecture, task: str, config: Any) -> list[Rung]:
    """Empty for a model whose tokens do not merge, or whose task needs each of them."""
    if task not in MERGING or not architecture.merges:
        return []
    patches = getattr(config, "patches", 0)
    values = sorted({int(share * patches / config.depth) for share in LADDER_SHARES} - {0})
    return [Rung(name=f"r{r}", schedule=r) for r in values]
