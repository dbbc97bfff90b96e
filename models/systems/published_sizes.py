"""The published sizes of every system by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.registry import resolve, systems


@dataclass(frozen=True)
class Size:
    name: str
    system: str
    architecture: str
    config: Any
    source: str
    """Paper."""


def sizes() -> Mapping[str, Size]:
    """Return all published sizes by name. Imports the code of every system."""
    return {
        name: Size(name, table.system, table.architecture, config, table.source)
        for system in systems()
        for table in system.sizes
        for name, config in resolve(table.configs).items()
    }
