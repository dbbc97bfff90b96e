"""Folders as on the hub: `config.json`, the weights in one file or several, the preparation of images, and a model card.

Those of transformers name a class in `architectures` and have a `preprocessor_config.json`; those of timm name an `architecture`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from models import hub_files
from models.checkpoints import hf_config, hf_image_processor, t5x
from models.checkpoints.checkpoint_file import Checkpoint, CheckpointError, open_checkpoint, read_json
from models.checkpoints.hf_config import KEY, PROCESSOR, TIMM
from models.hub_files import WEIGHTS

PROCESSORS = {hf_image_processor.FILE: None, "processor_config.json": "image_processor"}
"""Files with the preparation of images, of which the first that exists counts → the part of it that has it."""
GRAPHS = ("model.onnx", "onnx/model.onnx")
"""Paths of an ONNX graph in such a folder."""
NETWORK = "architecture"
"""Field of timm's config that names the network."""


def is_folder(path: Path) -> bool:
    return (path / hf_config.FILE).is_file() and t5x.find_checkpoint(path) is None


def weights_file(folder: Path) -> Path:
    """Return the file of the weights, or the index of several. Raises CheckpointError."""
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        graph = next((folder / name for name in GRAPHS if (folder / name).is_file()), None)
        instead = f"; it has an ONNX graph, which `opsin import {graph}` takes" if graph else ""
        raise CheckpointError(f"{folder}: has none of {', '.join(WEIGHTS)}, one of which holds the weights{instead}")
    return file


def open_folder(folder: Path) -> Checkpoint:
    """Read weights, config, preparation of images, labels and licence. Only tensors are read from torch files. Raises CheckpointError."""
    content = read_json(folder / hf_config.FILE)
    read = _weights(weights_file(folder))
    license_ = read_licence(folder)
    if isinstance(content.get(NETWORK), str):
        return Checkpoint(read.weights, {TIMM: content}, read.notes, timm_labels(content), license_)
    classes = content.get("architectures")
    if not isinstance(classes, list) or not classes or not isinstance(classes[0], str):
        raise CheckpointError(f"{folder / hf_config.FILE}: architectures names no class, and {NETWORK} no network of timm")
    description: dict[str, Any] = {KEY: content}
    if processor := stated_processor(folder):
        file, section = processor
        description[PROCESSOR] = hf_image_processor.read(section, str(content.get("model_type", "")), file)
    try:
        labels = tuple(hf_config.labels(content))
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return Checkpoint(read.weights, description, read.notes, labels, license_)


def shards(index: Path) -> list[str]:
    """Return the names of the files among which an index divides the weights. Raises CheckpointError."""
    try:
        return hub_files.shards(index)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _weights(file: Path) -> Checkpoint:
    if file.suffix != ".json":
        return open_checkpoint(file)
    names = shards(file)
    absent = [name for name in names if not (file.parent / name).is_file()]
    if absent:
        raise CheckpointError(f"{file}: {', '.join(absent)} must be in its folder, of {len(names)} files")
    weights: dict[str, Tensor] = {}
    notes: list[str] = []
    for name in names:
        part = open_checkpoint(file.parent / name)
        if duplicates := sorted(weights.keys() & part.weights.keys()):
            raise CheckpointError(
                f"{file}: {duplicates[0]} and {len(duplicates) - 1} more are in {name} and in another file: which one counts?"
            )
        weights |= part.weights
        notes += part.notes
    lost = sorted(set(read_json(file)["weight_map"]) - weights.keys())
    if lost:
        raise CheckpointError(f"{file}: weight_map names {lost[0]} and {len(lost) - 1} more, which are in none of its files")
    return Checkpoint(weights, {}, tuple(dict.fromkeys(notes)))


def stated_processor(folder: Path) -> tuple[str, Mapping[str, Any]] | None:
    """Return the name of the file with the preparation of images, and its content; None without one."""
    for name, part in PROCESSORS.items():
        if (folder / name).exists():
            content = read_json(folder / name)
            section = content if part is None else content.get(part)
            if isinstance(section, Mapping):
                return name, section
    return None


def timm_labels(content: Mapping[str, Any]) -> tuple[str, ...]:
    cfg = content.get("pretrained_cfg")
    names = content.get("label_names") or (cfg.get("label_names") if isinstance(cfg, Mapping) else None)
    return tuple(map(str, names)) if isinstance(names, list) else ()


MODEL_CARD = "README.md"
MAX_FRONT_MATTER_BYTES = 1 << 20
MAX_LICENCE_CHARS = 200
"""Maximum number of characters of a licence's name or address."""
SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
}
"""SPDX's names by the hub's; those of Creative Commons differ only in capitals."""


def read_licence(folder: Path) -> str:
    """Return the licence by its SPDX name if it has one; for another its own name and address. Empty if the card declares none."""
    card = _front_matter(folder / MODEL_CARD)
    licence = card.get("license")
    names = [name for each in (licence if isinstance(licence, list) else [licence]) if (name := _text(each))]
    if names == ["other"]:
        name, link = _text(card.get("license_name")) or "other", _text(card.get("license_link"))
        return f"{name} ({link})" if link else name
    return ", ".join(_spdx(name) for name in names)


def _spdx(name: str) -> str:
    return SPDX.get(name) or (name.upper() if name.startswith("cc") else name)


def _text(value: Any) -> str:
    """Return a short string; an empty one for all other values."""
    return value if isinstance(value, str) and value != "null" and len(value) <= MAX_LICENCE_CHARS and value.isprintable() else ""


def _front_matter(file: Path) -> dict[str, Any]:
    """Return the fields between the first line, `---`, and the next such line, with strings for all scalars. Dates, numbers and merges,
    which may be invalid or huge, are not parsed."""
    if not file.is_file():  # a pipe or a device may be read for ever
        return {}
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as stream:
            first, *lines = (line.rstrip() for line in stream.read(MAX_FRONT_MATTER_BYTES).split("\n"))
        content = yaml.load("\n".join(lines[: lines.index("---")]), yaml.BaseLoader) if first == "---" else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # a ValueError if no line ends it
        return {}
    return content if isinstance(content, dict) else {}
