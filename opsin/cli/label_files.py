"""Files of class names."""

from __future__ import annotations

import json
from pathlib import Path

from opsin.cli.exits import Misuse


def read(file: Path) -> list[str]:
    """Class names in the order of their numbers: one a line, a JSON list, or those of a bundle.json. Raises Misuse."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"--labels: {file}: {error}") from error
    if file.suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        names = json.loads(text)
    except ValueError as error:
        raise Misuse(f"--labels: {file}: no JSON ({error})") from error
    if isinstance(names, dict):  # a bundle.json
        names = names.get("labels")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Misuse(f"--labels: {file}: a JSON list of strings, or a bundle.json, is needed")
    return names
