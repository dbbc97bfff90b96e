"""The licence that a repository's model card states: the front matter of its `README.md`, as the hub reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

FILE = "README.md"
MOST_BYTES = 1 << 20
"""Length of a front matter that is read."""
SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
}
"""The hub's names → SPDX's; those of Creative Commons differ in nothing but capitals."""


def licence(folder: Path) -> str:
    """The licence by its SPDX name where it has one; for another its own name and address. Empty where the card states none."""
    stated = _front_matter(folder / FILE)
    names = stated.get("license")
    if names is None or isinstance(names, dict):
        return ""
    if names == "other":
        name, link = stated.get("license_name"), stated.get("license_link")
        return " ".join(str(part) for part in (name or "other", f"({link})" if link else "") if part)
    return ", ".join(_spdx(str(name)) for name in (names if isinstance(names, list) else [names]))


def _spdx(name: str) -> str:
    return SPDX.get(name) or (name.upper() if name.startswith("cc") else name)


def _front_matter(file: Path) -> dict[str, Any]:
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(MOST_BYTES)
    except OSError:
        return {}
    found = re.match(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", text, re.DOTALL)
    if found is None:
        return {}
    try:
        content = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}
