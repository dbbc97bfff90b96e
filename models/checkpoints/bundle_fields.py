"""Inputs, labels and ladder of an imported bundle's spec, and settings made by hand, such as `--set heads=4` on the command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel

from models.bundle import BundleSpec
from models.bundle_schema import Preprocess, QuerySpace, Rung
from models.checkpoints.checkpoint_file import CheckpointError, InvalidSetting
from models.checkpoints.family import ConfigFields, Family
from models.checkpoints.timm_transform import StatedTransform
from models.registry import Architecture, BundleDefaults, architectures

PREPROCESS_FIELDS = frozenset(Preprocess.model_fields) - {"image_size", "image_width"}
CLIP_FIELDS = frozenset({"stride", "rate", "smooth"})
SOUND_FIELDS = {"sample_rate": "sample_rate", "sound_mean": "mean", "sound_std": "std"}
SPACE_FIELDS = frozenset(QuerySpace.model_fields)
INPUT_FIELDS = PREPROCESS_FIELDS | CLIP_FIELDS | SOUND_FIELDS.keys() | SPACE_FIELDS
"""Settings that are not fields of the config."""


def parse(overrides: Mapping[str, str]) -> ConfigFields:
    return {key: _value(text) for key, text in overrides.items()}


def check(settings: ConfigFields) -> None:
    """Raise InvalidSetting for a setting of no family, with which no file could be recognised."""
    configs = {field.name for architecture in architectures().values() for field in dataclasses.fields(architecture.config)}
    for name in sorted(set(settings) - configs - INPUT_FIELDS):
        close = get_close_matches(name, configs | INPUT_FIELDS, 1)
        hint = f"is {close[0]} meant?" if close else "with --family the answer lists what can be"
        raise InvalidSetting(f"{name}: no family has such a setting; {hint}")


def split(family: Family, settings: ConfigFields) -> tuple[ConfigFields, ConfigFields]:
    """Return settings of the config, and settings of the model's inputs. Raises InvalidSetting for unknown ones."""
    config_fields = {field.name for field in dataclasses.fields(architectures()[family.architecture].config)}
    unknown = sorted(set(settings) - config_fields - INPUT_FIELDS)
    if unknown:
        accepted = ", ".join(sorted(config_fields | INPUT_FIELDS))
        raise InvalidSetting(f"{', '.join(unknown)}: cannot be set; what can be is {accepted}")
    return (
        {key: value for key, value in settings.items() if key in config_fields},
        {key: value for key, value in settings.items() if key not in config_fields},
    )


def _value(text: str) -> Any:
    """Parse JSON, `1,2,3` as a list, the numbers of a NumPy file whose name ends in `.npy`, else text."""
    if text.endswith(".npy"):
        return _array(Path(text))
    for candidate in (text, f"[{text}]"):
        try:
            return json.loads(candidate)
        except json.JSONDecodeError:
            continue
    return text


def _array(file: Path) -> Any:
    """Return the numbers of a file as lists, without axes of length 1: the published `mean_std.npy` is (2, 1, K)."""
    try:
        return np.load(file, allow_pickle=False).squeeze().tolist()
    except (OSError, ValueError, EOFError) as error:
        raise InvalidSetting(f"{file}: cannot be read as a NumPy array ({error})") from error


Section = TypeVar("Section", bound=BaseModel)

MERGING_TASKS = frozenset({"classify", "embed", "zero-shot", "actions", "audio-visual"})
"""Tasks whose outputs do not need each patch's token."""

MERGED_FRACTIONS = (0.25, 0.5, 0.65, 0.8, 0.95)
"""Shares of the patches that have merged at the end, evenly over the blocks, for the rungs of imported bundles. None is measured."""


def input_fields(
    family: Family, defaults: BundleDefaults, config: Any, settings: ConfigFields, transform: StatedTransform | None = None
) -> dict[str, Any]:
    """Return the fields of a spec for the preparation of images, clips and sounds. settings: made by hand; transform: that of the
    checkpoint. Raises CheckpointError for a transform that a bundle cannot express."""
    transform = transform or StatedTransform()
    smooth = {"smooth": True} if family.smooth else {}
    return {
        "preprocess": _preprocess(family, defaults, config, settings, transform),
        "clip": _override(defaults.clip(config), {key: key for key in CLIP_FIELDS}, smooth | settings),
        "sound": _override(defaults.sound(config), SOUND_FIELDS, settings),
        "space": _override(defaults.space(config), {key: key for key in SPACE_FIELDS}, settings),
    }


def unstated_settings(spec: BundleSpec, defaults: Mapping[str, Any]) -> ConfigFields:
    """Return the settings of `--set` that turn the `defaults` inputs into a spec's; all of its settings if there are no usual ones."""
    names: Mapping[str, Mapping[str, str]] = {
        "preprocess": {key: key for key in PREPROCESS_FIELDS},
        "clip": {key: key for key in CLIP_FIELDS},
        "sound": SOUND_FIELDS,
        "space": {key: key for key in SPACE_FIELDS},
    }
    settings: ConfigFields = {}
    for part, fields in names.items():
        section, default = getattr(spec, part), defaults.get(part)
        if section is not None:
            values = {name: getattr(section, key) for name, key in sorted(fields.items())}
            settings |= {name: value for name, value in values.items() if default is None or value != getattr(default, fields[name])}
    return settings


def _preprocess(
    family: Family, defaults: BundleDefaults, config: Any, settings: ConfigFields, transform: StatedTransform
) -> Preprocess | None:
    size = defaults.size(config)
    if size is None:
        return None
    height, width = size
    overrides = {key: value for key, value in settings.items() if key in PREPROCESS_FIELDS}
    family_fields = family.preprocess(min(size)).model_dump() | {"image_size": height, "image_width": None if width == height else width}
    return Preprocess.model_validate(family_fields | transform.fields(min(size), overrides) | overrides)


def _override(section: Section | None, names: Mapping[str, str], settings: ConfigFields) -> Section | None:
    """Replace usual settings of an input by those made by hand. names: setting → field."""
    overrides = {names[key]: value for key, value in settings.items() if key in names}
    return None if section is None else type(section).model_validate(section.model_dump() | overrides)


def label_names(file: Path, labels: Sequence[str] | None, declared: Sequence[str], defaults: Sequence[str], classes: int) -> list[str]:
    """Return the names of classes: `labels` by hand, or `declared` by the checkpoint, or the config's defaults. Raises CheckpointError."""
    if labels is None:
        if declared and len(declared) != classes:
            raise CheckpointError(f"{file}: has {classes} classes, and its config names {len(declared)}; --labels gives their names")
        return list(declared or defaults) or [f"class {index}" for index in range(classes)]
    if len(labels) != classes:
        header = f"; is the first of them, {labels[0]!r}, a header?" if len(labels) == classes + 1 else ""
        counts = f"has {classes or 'no'} classes, but {len(labels)} labels were given"
        counts = counts.replace("has 1 classes", "has 1 class").replace("but 1 labels were", "but 1 label was")
        raise InvalidSetting(f"{file}: {counts}{header}")
    return list(labels)


def unmeasured_ladder(architecture: Architecture, task: str, config: Any, *, sees: bool) -> list[Rung]:
    """Return rungs without measurements; none for a model whose tokens do not merge, or whose task needs each of them.

    A masked autoencoder that is served returns vectors, which do not need them. A model that hears and sees has a schedule for each half,
    since one has many more tokens. sees: whether the bundle has a preparation of images or frames.
    """
    may_merge = task in MERGING_TASKS or (task == "autoencode" and architecture.serves(task))
    if not may_merge or not architecture.merges:
        return []
    audio_patches, video_patches, patches = (getattr(config, name, 0) for name in ("audio_patches", "video_patches", "patches"))
    if audio_patches and video_patches and sees:
        halves = zip(_schedule_values(audio_patches, config), _schedule_values(video_patches, config), strict=True)
        return [Rung(name=f"r{r}-{sight}", schedule=r, schedule_sight=sight) for r, sight in dict.fromkeys(halves) if r or sight]
    return [Rung(name=f"r{r}", schedule=r) for r in dict.fromkeys(_schedule_values(audio_patches or patches, config)) if r]


def _schedule_values(patches: int, config: Any) -> list[int]:
    """Return r of each rung, rising."""
    return [int(fraction * patches / getattr(config, "depth", 1)) for fraction in MERGED_FRACTIONS]
