"""Files near a graph, as its exporter leaves them: preparation of images, size, labels and purpose of the network.

They lie in the graph's folder or, where that is called `onnx` as on Hugging Face, one level up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from models.checkpoints import hf_config, hf_folder, timm_transform
from models.checkpoints import hf_image_processor as processor
from models.checkpoints.checkpoint_file import CheckpointError
from models.checkpoints.family import ConfigFields
from models.checkpoints.timm_transform import ASSUMABLE_FIELDS, StatedTransform

FILES = f"{hf_config.FILE} or {processor.FILE}"
Purpose = Literal["classify", "embed"]
SUBFOLDER = "onnx"
"""Folder of graphs in a repository whose other files lie one level up."""


@dataclass(frozen=True)
class Beside:
    """Statements of these files; empty where there are none."""

    folders: tuple[Path, ...]
    """The graph's own first."""
    config: str = hf_config.FILE
    """The file that states labels and purpose, by its path from the graph's folder."""
    classes: int | None = None
    """Number of classes that it states; 0 or None: none."""
    image_size: int | None = None
    labels: tuple[str, ...] = ()
    purpose: Purpose | None = None
    processor: StatedTransform | None = None
    """The preparation, of transformers' files."""

    def rejection(self, numbers: int) -> str:
        """Reason why the config is not that of a classifier of so many classes; empty where it may be."""
        if self.classes in (None, 0, numbers):
            return ""
        return f"{self.config} is of a model with {self.classes} classes, not {numbers}: not read"

    def without_config(self) -> Beside:
        size = self.processor.image_size if isinstance(self.processor, processor.Processor) else None
        return replace(self, image_size=size, labels=(), purpose=None)

    def transform(self, classes: int) -> StatedTransform:
        """Raises CheckpointError."""
        if self.processor:
            return self.processor
        found = [_seen_from(folder, self.folders[0], timm_transform.find_transform(folder, {}, classes)) for folder in self.folders]
        return next((stated for stated in found if stated.source), next((stated for stated in found if stated.note), StatedTransform()))


def read(file: Path, given: ConfigFields) -> Beside:
    """file: the graph. given: fields set by hand; where these are the whole preparation, no file is read for it. Raises CheckpointError."""
    folders = places(file)
    folder = next((folder for folder in folders if (folder / hf_config.FILE).is_file()), None)
    config = hf_folder.read_json(folder / hf_config.FILE) if folder else {}
    name = _path(folder or folders[0], folders[0], hf_config.FILE)
    if isinstance(config.get(hf_folder.NETWORK), str):
        classes = config.get("num_classes")
        return Beside(
            folders,
            name,
            classes if isinstance(classes, int) else None,
            _timm_size(config),
            hf_folder.timm_labels(config),
            _timm_purpose(config),
        )
    stated = None if all(name in given for name in ASSUMABLE_FIELDS) else _processor(folders, str(config.get("model_type", "")))
    try:
        labels = tuple(hf_config.labels(config))
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return Beside(folders, name, len(labels) or None, _size(config, stated), labels, _purpose(config), stated)


def places(file: Path) -> tuple[Path, ...]:
    """Folders of the files that describe a graph, the first that has one counts."""
    folder = file.absolute().parent
    return (file.parent, folder.parent) if folder.name == SUBFOLDER else (file.parent,)


def _path(folder: Path, own: Path, name: str) -> str:
    return name if folder == own else f"../{name}"


def _seen_from(folder: Path, own: Path, stated: StatedTransform) -> StatedTransform:
    source, note = (_path(folder, own, text) if text else "" for text in (stated.source, stated.note))
    return replace(stated, source=source, note=note)


def _processor(folders: tuple[Path, ...], model_type: str) -> StatedTransform | None:
    found = next(((folder, stated) for folder in folders if (stated := hf_folder.stated_processor(folder))), None)
    if found is None:
        return None
    folder, (file, content) = found
    try:
        return processor.read(content, model_type, _path(folder, folders[0], file))
    except CheckpointError as error:
        settings = " ".join(f"--set {name}=…" for name in ASSUMABLE_FIELDS)
        raise CheckpointError(f"{error}; all of {settings} together take its place") from error


def _size(config: Mapping[str, Any], stated: StatedTransform | None) -> int | None:
    if isinstance(stated, processor.Processor):
        return stated.image_size
    side = config.get("image_size")
    return side if isinstance(side, int) else None


def _timm_size(config: Mapping[str, Any]) -> int | None:
    cfg = config.get(timm_transform.KEY)
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
