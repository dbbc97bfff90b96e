"""Images of a folder, and what is known of them, for commands that measure a bundle on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from opsin.cli.bundles.model_inputs import at_model_size
from opsin.cli.shared.errors import UsageError
from opsin.cli.shared.image_files import expand_folders

if TYPE_CHECKING:
    from models.bundle import BundleSpec
    from opsin.measuring.ladder import LabelledImages

MIN_FILES = 300
"""Files: with fewer, not even one label that changes would be sure to be less than one in a hundred."""
CAPTIONS = "captions.jsonl"
"""Lines {"image": FILE, "caption": TEXT}, files from its folder, as training reads them."""


def examples(folder: Path, spec: BundleSpec) -> LabelledImages:
    """Return what a ladder is measured on. Raises UsageError."""
    import numpy as np

    from opsin.measuring.ladder import LabelledImages

    if not folder.is_dir():
        raise UsageError(f"--images: {folder} is no folder")
    if spec.task == "classify" and any(path.is_dir() for path in folder.iterdir()):
        known = list(iter_labelled(folder, spec))
        if not known:
            raise UsageError(f"--images: {folder} holds no images in folders of labels")
        pixels = np.stack(at_model_size((path for path, _ in known), spec, "--images"))
        return LabelledImages(pixels, labels=np.array([label for _, label in known]))
    if spec.text is not None and (folder / CAPTIONS).is_file():
        pairs = _captions(folder / CAPTIONS)
        places = {file: place for place, file in enumerate(dict.fromkeys(file for file, _ in pairs))}
        pixels = np.stack(at_model_size(places, spec, "--images"))
        return LabelledImages(pixels, captions=[caption for _, caption in pairs], captioned=[places[file] for file, _ in pairs])
    files, _ = expand_folders([folder])
    return LabelledImages(np.stack(at_model_size(files, spec, "--images")))


def _captions(file: Path) -> list[tuple[Path, str]]:
    """Image files and what each shows. Raises UsageError naming the line."""
    found = []
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # captions may hold other ends of lines
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
        found.append((file.parent / image, caption))
    if not found:
        raise UsageError(f"--images: {file}: has no lines")
    return found


def iter_labelled(folder: Path, spec: BundleSpec) -> Iterator[tuple[Path, int]]:
    """Images below FOLDER/LABEL/ and the index of their label. Raises UsageError."""
    if not folder.is_dir():
        raise UsageError(f"--images: {folder} is no folder")
    places = {label: index for index, label in enumerate(spec.labels)}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        if part.name not in places:
            raise UsageError(f"--images: {part} is named after no label of {spec.id}; `opsin bundles show` lists them")
        yield from ((path, places[part.name]) for path in sorted(part.iterdir()) if path.is_file())
