"""Files in the folder of a graph, as its exporter leaves them there: preparation of images, size, labels and purpose of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from models.published import model_config, model_folder, processor, transforms
from models.published.container import CheckpointError
from models.published.family import Fields
from models.published.transforms import CHOSEN, Stated

FILES = f"{model_config.FILE} or {processor.FILE}"
Purpose = Literal["classify", "embed"]


@dataclass(frozen=True)
class Beside:
    """Statements of these files; empty where there are none."""

    folder: Path
    image_size: int | None = None
    labels: tuple[str, ...] = ()
    purpose: Purpose | None = None
    processor: Stated | None = None
    """The preparation, of transformers' files."""

    def transform(self, classes: int) -> Stated:
        """Raises CheckpointError."""
        return self.processor or transforms.find(self.folder, {}, classes)


def read(folder: Path, given: Fields) -> Beside:
    """given: fields set by hand; where these are the whole preparation, no file is asked for it. Raises CheckpointError."""
    config = model_folder.read_json(folder / model_config.FILE) if (folder / model_config.FILE).is_file() else {}
    if isinstance(config.get(model_folder.NETWORK), str):
        return Beside(folder, _timm_size(config), model_folder.timm_labels(config), _timm_purpose(config))
    stated = None if all(name in given for name in CHOSEN) else _processor(folder, str(config.get("model_type", "")))
    try:
        labels = tuple(model_config.labels(config))
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return Beside(folder, _size(config, stated), labels, _purpose(config), stated)


def _processor(folder: Path, model_type: str) -> Stated | None:
    found = model_folder.stated_processor(folder)
    if found is None:
        return None
    file, content = found
    try:
        return processor.read(content, model_type, file)
    except CheckpointError as error:
        settings = " ".join(f"--set {name}=…" for name in CHOSEN)
        raise CheckpointError(f"{error}; all of {settings} together take its place") from error


def _size(config: Mapping[str, Any], stated: Stated | None) -> int | None:
    if isinstance(stated, processor.Processor):
        return stated.image_size
    side = config.get("image_size")
    return side if isinstance(side, int) else None


def _timm_size(config: Mapping[str, Any]) -> int | None:
    cfg = config.get(transforms.KEY)
    size = cfg.get("input_size") if isinstance(cfg, Mapping) else None
    return size[-1] if isinstance(size, list) and size and isinstance(size[-1], int) else None


def _timm_purpose(config: Mapping[str, Any]) -> Purpose | None:
    classes = config.get("num_classes")
    return None if not isinstance(classes, int) else "classify" if classes else "embed"


def _purpose(config: Mapping[str, Any]) -> Purpose | None:
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    if "ForImageClassification" in name:
        return "classify"
    return "embed" if name.endswith(("Model", "ModelWithProjection")) else None
