"""Image files at the input size of a bundle's model, with their labels or captions, for commands that run the model themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsin.cli.services import settings_of
from opsin.cli.shared.errors import UsageError
from opsin.cli.shared.image_files import expand_folders

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.bundle import BundleSpec
    from opsin.measuring.ladder import LabelledImages
MIN_FILES = 300
"""Minimum number of files: with fewer, even a single changed label could mean more than 1 % of changed labels."""
CAPTIONS_FILE = "captions.jsonl"
"""Lines {"image": FILE, "caption": TEXT}, with paths relative to its folder, as training reads them."""


def load_at_model_size(paths: Iterable[Path], spec: BundleSpec, option: str) -> list[NDArray[Any]]:
    """Read images as uint8 (S, S, 3), prepared as the service does. Raises UsageError naming `option` and the file."""
    from server.media.images import ImageDecoder, ImageError, to_model_size

    limit, pixels = settings_of(None).max_pixels, []
    for path in paths:
        try:
            with ImageDecoder(limit).decode(path.read_bytes()) as picture:
                pixels.append(to_model_size(picture, spec.image_preprocess, limit))
        except (ImageError, OSError) as error:
            raise UsageError(f"{option}: {path}: {error}") from error
    return pixels


def read_labelled_images(folder: Path, spec: BundleSpec) -> LabelledImages:
    """Read the images of a folder, with labels or captions if it has them. Raises UsageError."""
    import numpy as np

    from opsin.measuring.ladder import LabelledImages

    if not folder.is_dir():
        raise UsageError(f"--images: {folder} is not a folder")
    if spec.task == "classify" and any(path.is_dir() for path in folder.iterdir()):
        labelled = list(iter_labelled(folder, spec))
        if not labelled:
            raise UsageError(f"--images: {folder} holds no images in folders of labels")
        pixels = np.stack(load_at_model_size((path for path, _ in labelled), spec, "--images"))
        return LabelledImages(pixels, labels=np.array([label for _, label in labelled]))
    if spec.text is not None and (folder / CAPTIONS_FILE).is_file():
        pairs = _read_captions(folder / CAPTIONS_FILE)
        indices = {file: index for index, file in enumerate(dict.fromkeys(file for file, _ in pairs))}
        pixels = np.stack(load_at_model_size(indices, spec, "--images"))
        return LabelledImages(pixels, captions=[caption for _, caption in pairs], captioned=[indices[file] for file, _ in pairs])
    files, _ = expand_folders([folder])
    return LabelledImages(np.stack(load_at_model_size(files, spec, "--images")))


def _read_captions(file: Path) -> list[tuple[Path, str]]:
    """Read image files and their captions. Raises UsageError naming the line."""
    captions = []
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # captions may contain other line separators
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--images: {file}: cannot be read as UTF-8 ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image, caption = row["image"], row["caption"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f'--images: {file}:{number}: must be a JSON object like {{"image": FILE, "caption": TEXT}}') from error
        if not isinstance(image, str) or not isinstance(caption, str) or not caption.strip():
            raise UsageError(f"--images: {file}:{number}: image and caption must be texts that are not empty")
        captions.append((file.parent / image, caption))
    if not captions:
        raise UsageError(f"--images: {file}: has no lines")
    return captions


def iter_labelled(folder: Path, spec: BundleSpec) -> Iterator[tuple[Path, int]]:
    """Yield the images in FOLDER/LABEL/ with the index of their label. Raises UsageError."""
    if not folder.is_dir():
        raise UsageError(f"--images: {folder} is not a folder")
    label_indices = {label: index for index, label in enumerate(spec.labels)}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        if part.name not in label_indices:
            raise UsageError(f"--images: {part} is not named after a label of {spec.id}; `opsin bundles show` lists them")
        yield from ((path, label_indices[part.name]) for path in sorted(part.iterdir()) if path.is_file())
