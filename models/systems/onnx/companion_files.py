"""Files near a graph, as its exporter leaves them: preparation of images, size, labels and purpose of the network.

They are in the graph's folder or, if that is called `onnx` as on Hugging Face, one level up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from models.checkpoints import hf_config, hf_folder, timm_transform
from models.checkpoints import hf_image_processor as processor
from models.checkpoints.checkpoint_file import CheckpointError, read_json
from models.checkpoints.family import ConfigFields
from models.checkpoints.timm_transform import ASSUMABLE_FIELDS, StatedTransform

FILES = f"{hf_config.FILE} or {processor.FILE}"
Purpose = Literal["classify", "embed"]
SUBFOLDER = "onnx"
"""Folder of graphs in a repository whose other files are one level up."""


@dataclass(frozen=True)
class CompanionFiles:
    """Declarations of these files; empty without files."""

    folders: tuple[Path, ...]
    """Folders of the files, the graph's own first."""
    config: str = hf_config.FILE
    """Path, from the graph's folder, of the file that declares labels and purpose."""
    classes: int | None = None
    """Number of classes that it declares; 0 or None: none."""
    image_size: int | None = None
    labels: tuple[str, ...] = ()
    purpose: Purpose | None = None
    processor: StatedTransform | None = None
    """Preparation of images, from transformers' files."""

    def rejection(self, row_length: int) -> str:
        """Return why the config is not that of a classifier of so many classes; empty if it may be."""
        if self.classes in (None, 0, row_length):
            return ""
        return f"{self.config} is of a model with {self.classes} classes, not {row_length}: not read"

    def drop_config(self) -> CompanionFiles:
        size = self.processor.image_size if isinstance(self.processor, processor.Processor) else None
        return replace(self, image_size=size, labels=(), purpose=None)

    def transform(self, classes: int) -> StatedTransform:
        """Return the preparation of images. Raises CheckpointError."""
        if self.processor:
            return self.processor
        found = [_relative_to_graph(folder, self.folders[0], timm_transform.find_transform(folder, {}, classes)) for folder in self.folders]
        with_note = (transform for transform in found if transform.note)
        return next((transform for transform in found if transform.source), next(with_note, StatedTransform()))


def read_companions(file: Path, overrides: ConfigFields) -> CompanionFiles:
    """Read the files near a graph. Raises CheckpointError. file: the graph. overrides: fields set by hand; if these are the whole
    preparation, no file is read for it."""
    folders = companion_folders(file)
    folder = next((folder for folder in folders if (folder / hf_config.FILE).is_file()), None)
    config = read_json(folder / hf_config.FILE) if folder else {}
    name = _relative_path(folder or folders[0], folders[0], hf_config.FILE)
    if isinstance(config.get(hf_folder.NETWORK), str):
        classes = config.get("num_classes")
        return CompanionFiles(
            folders,
            name,
            classes if isinstance(classes, int) else None,
            _timm_size(config),
            hf_folder.timm_labels(config),
            _timm_purpose(config),
        )
    transform = None if all(name in overrides for name in ASSUMABLE_FIELDS) else _processor(folders, str(config.get("model_type", "")))
    try:
        labels = tuple(hf_config.labels(config))
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return CompanionFiles(folders, name, len(labels) or None, _size(config, transform), labels, _purpose(config), transform)


def companion_folders(file: Path) -> tuple[Path, ...]:
    """Return the folders of the files that describe a graph; the first that has a file counts."""
    folder = file.absolute().parent
    return (file.parent, folder.parent) if folder.name == SUBFOLDER else (file.parent,)


def _relative_path(folder: Path, graph_folder: Path, name: str) -> str:
    return name if folder == graph_folder else f"../{name}"


def _relative_to_graph(folder: Path, graph_folder: Path, transform: StatedTransform) -> StatedTransform:
    source, note = (_relative_path(folder, graph_folder, text) if text else "" for text in (transform.source, transform.note))
    return replace(transform, source=source, note=note)


def _processor(folders: tuple[Path, ...], model_type: str) -> StatedTransform | None:
    match = next(((folder, section) for folder in folders if (section := hf_folder.stated_processor(folder))), None)
    if match is None:
        return None
    folder, (file, content) = match
    try:
        return processor.read(content, model_type, _relative_path(folder, folders[0], file))
    except CheckpointError as error:
        settings = " ".join(f"--set {name}=…" for name in ASSUMABLE_FIELDS)
        raise CheckpointError(f"{error}; all of {settings} together replace it") from error


def _size(config: Mapping[str, Any], transform: StatedTransform | None) -> int | None:
    if isinstance(transform, processor.Processor):
        return transform.image_size
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
