"""Settings made by hand, such as `--set heads=4` on the command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle_schema import Preprocess, QuerySpace
from models.checkpoints.checkpoint_file import InvalidSetting
from models.checkpoints.family import ConfigFields, Family
from models.registry import architectures

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
