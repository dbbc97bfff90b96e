"""Files of class names."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from opsin.cli.shared.errors import UsageError

AUDIOSET_HEADER = "index,mid,display_name"
"""First line of AudioSet's `class_labels_indices.csv`."""


def read(file: Path) -> list[str]:
    """Read class names, in order: one per line, a JSON list, those of a bundle.json, or AudioSet's table. Raises UsageError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"--labels: {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--labels: {file}: not valid UTF-8; it must hold class names, one per line, as a JSON list, or in a bundle.json"
        ) from error
    if file.suffix != ".json":
        lines = [line.strip() for line in text.split("\n") if line.strip()]  # U+2028 and the like may be part of a label
        return [row[-1] for row in csv.reader(lines[1:])] if lines[:1] == [AUDIOSET_HEADER] else lines
    try:
        names = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--labels: {file}: not valid JSON ({error})") from error
    if isinstance(names, dict):  # a bundle.json
        names = names.get("labels")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"--labels: {file}: must be a JSON list of strings, or a bundle.json")
    return names
