"""Kinds of data, objectives and evaluations: a built-in name, or a class of any package as `package.module:NAME`.

A class is imported when a recipe that names it is read. So a recipe can run code: look at the kinds of recipes that you did not write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from training.recipe_settings import RecipeSettings

UNUSABLE = "kind"
"""Type of the error that pydantic reports for a kind that cannot be used."""

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

T = TypeVar("T", bound=RecipeSettings)


@dataclass(frozen=True)
class Kinds(Generic[T]):
    """Classes of settings that a field `kind` can name."""

    base: type[T]
    """Class that all of them are derived from."""
    ours: Mapping[str, str]
    """Name → `package.module:NAME`."""
    moved: Mapping[str, str] = field(default_factory=dict)
    """Name of earlier versions → `package.module:NAME`. Messages do not list them."""

    def read(self, value: Any) -> Any:
        """Read settings of the class that `kind` names; anything but a mapping is returned unchanged. Raises ValidationError."""
        if not isinstance(value, Mapping):
            return value
        kind = value.get("kind")
        try:
            settings = self._class(kind)
        except ValueError as error:
            reason = PydanticCustomError(UNUSABLE, "{reason}", {"reason": str(error)})
            raise ValidationError.from_exception_data(
                self.base.__name__, [InitErrorDetails(type=reason, loc=("kind",), input=kind)]
            ) from error
        fields = dict(value)
        if not settings.model_fields["kind"].is_required():
            del fields["kind"]  # a class has a short name of its own, which runs and bundles record
        return settings.model_validate(fields)

    def _class(self, kind: Any) -> type[T]:
        """Return the class that a kind names. Raises ValueError."""
        reference = {**self.ours, **self.moved}.get(kind, kind) if isinstance(kind, str) else ""
        if not _REFERENCE.fullmatch(reference):
            problem = "is missing" if kind is None else f"{kind!r} is unknown"
            raise ValueError(f"{problem}; known are {', '.join(self.ours)}, and classes of other packages as package.module:NAME")
        module, _, name = reference.partition(":")
        found = getattr(_import(module), name, None)
        if found is None:
            raise ValueError(f"{reference}: module {module} has no {name}")
        if not (isinstance(found, type) and issubclass(found, self.base)) or "kind" not in found.model_fields:
            raise ValueError(f"{reference}: is not derived from {self.base.__module__}.{self.base.__name__}")
        return found


def _import(module: str) -> Any:
    """Import a module. Raises ValueError that says what to correct or to install."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        package, _, name = missing.rpartition(".")
        if not f"{module}.".startswith(f"{missing}."):
            reason = f"module {module} imports {missing}, which is not installed: pip install it into this environment"
        elif package:
            reason = f"module {missing} does not exist: {package} has no module {name}"
        elif missing == "starters":
            reason = (
                f"module {module} cannot be imported: it belongs to the starters' recipes, which are only in Opsin's repository;"
                " clone it and pip install -e '.[train]' there"
            )
        else:
            reason = f"module {missing} cannot be imported: pip install the package that has it, or add its folder to PYTHONPATH"
        raise ValueError(reason) from error
    except Exception as error:  # imported code may raise anything
        raise ValueError(f"module {module} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})") from error
