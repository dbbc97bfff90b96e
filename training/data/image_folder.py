"""A folder of images: one subfolder for each class, or images without labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import torch
from PIL import Image

from training.data.augment import prepare_image
from training.data.load_image import open_on_white
from training.data.source import DataSettings, Sample, SamplePreparation, UnreadableSample
from training.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


class ImageFolderSettings(DataSettings):
    kind: Literal["folder"] = "folder"
    path: Path
    """Folder, relative to the working directory."""
    labelled: bool = True
    """Subfolders are classes, in the order of their names; False: all images below, without labels."""

    def open(self, preparation: SamplePreparation) -> ImageFolder:
        root = self.path
        if not root.is_dir():
            raise DataError(f"data.path: {root} is not a folder")
        preparation.require_preprocess()
        labels = (
            tuple(sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")))
            if self.labelled
            else ()
        )
        files: list[Path] = []
        classes: list[int] = []
        for number, below in enumerate([root / label for label in labels] or [root]):
            found = sorted(file for file in below.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if labels and not found:
                raise DataError(f"{below}: no image in this folder of a class; delete it, or put {', '.join(sorted(SUFFIXES))} files there")
            files += found
            classes += [number] * len(found)
        if self.labelled and len(labels) < 2:
            raise DataError(f"data.path: {root} has {len(labels)} subfolders; labelled images need one for each of two or more classes")
        if not files:
            raise DataError(f"data.path: {root} has no images ({', '.join(sorted(SUFFIXES))})")
        return ImageFolder(root, tuple(files), tuple(classes) if self.labelled else (), labels, preparation)


@dataclass(frozen=True)
class ImageFolder:
    root: Path
    files: tuple[Path, ...]
    classes: tuple[int, ...]
    """One for each file; empty without labels."""
    labels: tuple[str, ...]
    preparation: SamplePreparation
    unit: str = "images"

    def __len__(self) -> int:
        return len(self.files)

    def identity(self) -> Mapping[str, Any]:
        listing = "\n".join(f"{file.relative_to(self.root).as_posix()} {file.stat().st_size}" for file in self.files)
        return {"files": len(self.files), "listing": hashlib.sha256(listing.encode()).hexdigest()}

    def sample(self, index: int, draw: int) -> Sample:
        image = read_image(self.files[index])
        pixels = prepare_image(image, self.preparation, draw)
        return {"pixels": pixels, "label": torch.tensor(self.classes[index])} if self.classes else {"pixels": pixels}


def read_image(file: Path | IO[bytes], name: str = "") -> Image.Image:
    """Read an image as RGB on white. `name` is that of the file inside an archive. Raises UnreadableSample."""
    try:
        return open_on_white(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableSample(f"{name or file}: {error}") from error
