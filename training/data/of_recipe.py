"""`data: {recipe: PATH}`: the data of another recipe, with the fields that stand beside it changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from training.shipped import located


def of_recipe(value: Any) -> Any:
    """The settings that pydantic is to read in the place of `value`. Raises ValueError."""
    if not isinstance(value, dict) or "recipe" not in value:
        return value
    try:
        path = located(Path(value["recipe"]))
        data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
        return {**data, **{name: changed for name, changed in value.items() if name != "recipe"}}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"recipe: {value['recipe']} cannot be read as a recipe with data ({error})") from error
