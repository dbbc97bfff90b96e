"""Finds what comes with this code from any folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from models.starters import installed_starters


def located(path: Path) -> Path:
    """The file or folder; where there is none, what comes with this code under the same name: `training/recipes/…`, `docs/pictures/…`
    and `bundles/…`."""
    shipped = [Path(__file__).parents[1] / path]
    if path.is_relative_to("bundles") and (folder := installed_starters()) is not None:
        shipped.append(folder / path.relative_to("bundles"))
    return next((found for found in (path, *shipped) if found.exists()), path)


Located = Annotated[Path, AfterValidator(located)]
"""A path in a recipe, which is found from any folder as `located` finds it."""
