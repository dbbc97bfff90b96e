"""Validation transforms of timm's checkpoints: `pretrained_cfg`, in the file or in a `config.json` in its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.checkpoints.checkpoint_file import CheckpointError, read_json
from models.checkpoints.family import ConfigFields
from models.checkpoints.hf_config import PROCESSOR

FILES = ("config.json", "pretrained_cfg.json")
"""Files in a checkpoint's folder that may state its transform, of which the first that does so counts."""
KEY = "pretrained_cfg"
FIT_BY_CROP_MODE = {"center": "crop", "squash": "squeeze"}
"""timm's `crop_mode` → `Preprocess.fit`."""
INTERPOLATIONS = ("bicubic", "bilinear")
ASSUMABLE_FIELDS = ("short_side", "interpolation", "mean", "std")
"""Fields of `Preprocess` that a note about an assumption names, with the `--set` that changes them."""


@dataclass(frozen=True)
class StatedTransform:
    source: str = ""
    """File that states it; empty: none does."""
    cfg: Mapping[str, Any] = field(default_factory=dict)
    """timm's `pretrained_cfg`."""
    note: str = ""
    """File that was not read, and why; empty: there is none."""

    def fields(self, size: int, overrides: ConfigFields) -> ConfigFields:
        """Return fields of `Preprocess` for images of `size` pixels. overrides: fields set by hand, which count instead.

        Raises CheckpointError for a transform that a bundle cannot express.
        """
        fields: ConfigFields = {}
        crop, mode, interpolation = (self.cfg.get(key) for key in ("crop_pct", "crop_mode", "interpolation"))
        if crop is not None and "short_side" not in overrides:
            fields["short_side"] = math.floor(size / self._number("crop_pct", crop))
        if mode is not None and "fit" not in overrides:
            fields["fit"] = FIT_BY_CROP_MODE.get(str(mode))
            is_whole = fields["fit"] == "squeeze" and overrides.get("short_side", fields.get("short_side", size)) == size
            if fields["fit"] is None or (fields["fit"] == "squeeze" and not is_whole):
                raise CheckpointError(
                    f"{self.source}: crop_mode {mode!r} at crop_pct {crop} cannot be kept; --set fit=crop takes the centre"
                )
        if interpolation is not None and "interpolation" not in overrides:
            if interpolation not in INTERPOLATIONS:
                raise CheckpointError(
                    f"{self.source}: interpolation {interpolation!r} cannot be kept; --set interpolation=bicubic is near it"
                )
            fields["interpolation"] = interpolation
        return fields | {key: self.cfg[key] for key in ("mean", "std") if self.cfg.get(key) is not None and key not in overrides}

    def _number(self, key: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise CheckpointError(f"{self.source}: {key} {value!r} is not a share of an image; --set short_side=… sets it by hand")
        return float(value)


def find_transform(file: Path, description: Mapping[str, Any], classes: int) -> StatedTransform:
    """Return the transform in a checkpoint's own description, else in one of FILES in its folder. classes: of its head; 0: it has none.

    A file of a model with another number of classes is skipped. Raises CheckpointError for a file that is not JSON.
    """
    if isinstance(processor := description.get(PROCESSOR), StatedTransform):
        return processor
    cfg_of_file = _cfg(description)
    if cfg_of_file:
        return StatedTransform(file.name, cfg_of_file)
    folder = file if file.is_dir() else file.parent
    for path in (folder / name for name in FILES):
        if not path.is_file():
            continue
        content = read_json(path)
        cfg = _cfg(content) or (content if content.keys() & {"crop_pct", "crop_mode", "mean"} else {})
        declared = content.get("num_classes", cfg.get("num_classes"))
        if cfg and classes and isinstance(declared, int) and declared != classes:
            return StatedTransform(note=f"{path.name} is of a model with {declared} classes, not {classes}: not read")
        if cfg:
            return StatedTransform(path.name, cfg)
    return StatedTransform()


def describe_assumption(source: str, preprocess: ConfigFields, overrides: ConfigFields, file: str) -> str:
    """Describe an assumed transform in one sentence; empty if it was set by hand. source: such as "that of family timm"; preprocess: the
    assumed fields; file: the one that could have stated it, empty if it exists and was not read."""
    if not (left := [name for name in ASSUMABLE_FIELDS if name not in overrides]):
        return ""
    settings = " ".join(f"--set {name}={_text(preprocess[name])}" for name in left)
    absent = f": no {file} next to the file states it" if file else ""
    return f"the transform is assumed, {source}{absent}; what changes it: {settings}"


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _cfg(content: Mapping[str, Any]) -> Mapping[str, Any]:
    cfg = content.get(KEY)
    if isinstance(cfg, str):  # metadata of safetensors
        try:
            cfg = json.loads(cfg)
        except ValueError:
            return {}
    return cfg if isinstance(cfg, Mapping) else {}
