"""Licence of a repository from its model card: the front matter of its `README.md`, as the hub reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FILE = "README.md"
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
    card = _front_matter(folder / FILE)
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
