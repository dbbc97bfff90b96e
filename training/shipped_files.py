"""Finds what comes with this code from any folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from models.bundle_folders import installed_starters

_ROOT = Path(__file__).parents[1]
_MOVED = (
    *(f"recipes/{name}" for name in ("actions", "clips", "depth", "flags", "inpaint", "reconstruct", "sounds", "words")),
    "recipes/words-vocabulary.json",
    "phases",
)
"""Files and folders of earlier versions below `training/` that are below `starters/` now; recipes without `.yaml`."""


def recipe_names() -> list[str]:
    """Return the shipped recipes, by their paths in `training/recipes/` without suffix."""
    folder = _ROOT / "training" / "recipes"
    return sorted((str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml")), key=lambda name: ("/" in name, name))


def moved_to(path: Path) -> Path | None:
    """Return the path in the repository of a file of an earlier version; None for other files."""
    if not path.is_relative_to("training"):
        return None
    below = path.relative_to("training")
    return next((Path("starters") / below for old in _MOVED if below.is_relative_to(old) or below == Path(f"{old}.yaml")), None)


def locate(path: Path) -> Path:
    """Return the path if it exists, otherwise that of a shipped file of the same or an earlier name.

    Shipped are `training/recipes/…`, `docs/pictures/…` and `bundles/…`.
    """
    shipped = [_ROOT / path]
    if (now := moved_to(path)) is not None:
        shipped.append(_ROOT / now)
    if path.is_relative_to("bundles") and (folder := installed_starters()) is not None:
        shipped.append(folder / path.relative_to("bundles"))
    return next((found for found in (path, *shipped) if found.exists()), path)


def warn_if_moved(path: Path) -> None:
    """Print a line on standard error if a file is found under a new name."""
    if not path.exists() and (now := moved_to(path)) is not None and locate(path).is_relative_to(_ROOT / now):
        print(f"{path} is {now} now", file=sys.stderr)


Located = Annotated[Path, AfterValidator(locate)]
"""A path in a recipe, which is found from any folder as `located` finds it."""
