"""Systems and tasks that other installed packages bring, by the entry points `opsin.systems` and `opsin.tasks`.

They are read when the tables of systems and tasks are first imported. Confined children read none: `OPSIN_EXTENSIONS` is false there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

SWITCH = "OPSIN_EXTENSIONS"
GROUPS = SYSTEMS, TASKS = "opsin.systems", "opsin.tasks"


class ExtensionError(Exception):
    """An extension cannot be used; the message names it and its package."""


@dataclass(frozen=True)
class Extension:
    """What one entry point names, imported."""

    name: str
    package: str
    version: str
    value: Any

    def __str__(self) -> str:
        return f"extension {self.name} of {self.package} {self.version}"


@cache
def extensions(group: str) -> tuple[Extension, ...]:
    """Import what the installed packages list in a group, in the order of names. Raises ExtensionError."""
    if os.environ.get(SWITCH, "true").lower() not in ("true", "1", "yes", "on", "t", "y"):
        return ()
    return tuple(_loaded(entry_points(group=group)))


def loaded() -> tuple[Extension, ...]:
    """Return all extensions of this process. Raises ExtensionError."""
    return tuple(extension for group in GROUPS for extension in extensions(group))


def _loaded(points: Iterable[EntryPoint]) -> Iterator[Extension]:
    for point in sorted(points, key=lambda point: point.name):
        package, version = ("?", "?") if point.dist is None else (point.dist.name, point.dist.version)
        try:
            value = point.load()
        except Exception as error:  # whatever a stranger's module raises while it is imported
            raise ExtensionError(f"extension {point.name} of {package} {version}: {point.value} cannot be imported: {error!r}") from error
        yield Extension(point.name, package, version, value)
