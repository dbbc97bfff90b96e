"""Files with classes: one subfolder for each class, or a list in `labels.jsonl`, where a file may have several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.data.image_text import digest, read_jsonl
from training.errors import DataError

LABELS = "labels.jsonl"


@dataclass(frozen=True)
class LabelledFiles:
    root: Path
    files: tuple[Path, ...]
    classes: tuple[tuple[int, ...], ...]
    """Classes of each file."""
    labels: tuple[str, ...]
    several: bool
    """Whether a file may have any number of classes."""

    def identity(self) -> Mapping[str, Any]:
        rows = (
            f"{file.relative_to(self.root).as_posix()} {file.stat().st_size} {classes}"
            for file, classes in zip(self.files, self.classes, strict=True)
        )
        return {"files": len(self.files), "listing": digest(rows)}

    def target(self, index: int) -> dict[str, Tensor]:
        """`label` or `labels` of a sample; nothing without labels."""
        if not self.labels:
            return {}
        if not self.several:
            return {"label": torch.tensor(self.classes[index][0])}
        return {"labels": torch.zeros(len(self.labels)).index_fill_(0, torch.tensor(self.classes[index], dtype=torch.int64), 1.0)}


def find(root: Path, suffixes: frozenset[str], *, labelled: bool) -> LabelledFiles:
    """`labels.jsonl` in `root` has lines {"file": FILE, "labels": [NAME, …]}; without it, subfolders are classes. Raises DataError."""
    if not root.is_dir():
        raise DataError(f"data.path: {root} is not a folder")
    accepted = ", ".join(sorted(suffixes))
    if labelled and (root / LABELS).is_file():
        return _read_list(root)
    found = sorted(file for file in root.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
    if not found:
        raise DataError(f"data.path: {root} has no files of kind {accepted}")
    if not labelled:
        return LabelledFiles(root, tuple(found), tuple(() for _ in found), (), False)
    names = [file.relative_to(root).parts[0] for file in found]
    labels = tuple(sorted(set(names)))
    if len(labels) < 2 or any(file.parent == root for file in found):
        raise DataError(f"data.path: {root} needs one subfolder for each of two or more classes, or {LABELS}")
    return LabelledFiles(root, tuple(found), tuple((labels.index(name),) for name in names), labels, False)


def _read_list(root: Path) -> LabelledFiles:
    rows = read_jsonl(root / LABELS, ("file", "labels"))
    labels = tuple(sorted({str(name) for row in rows for name in row["labels"]}))
    classes = tuple(tuple(labels.index(str(name)) for name in row["labels"]) for row in rows)
    return LabelledFiles(root, tuple(root / str(row["file"]) for row in rows), classes, labels, True)
