"""Reader of transformers' `config.json`. A field with a value that no network here computes is refused by its name.

Defaults are those of the library's configuration classes, whose documentation names the fields: files may lack them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from models.bundle_schema import MAX_SIDE
from models.checkpoints.family import ConfigFields
from models.checkpoints.fit_family import ONNX_ADVICE

FILE = "config.json"
KEY = "transformers"
"""Key of the content of FILE in a checkpoint's description."""
PROCESSOR = "processor"
"""Key of the content of `preprocessor_config.json`."""
TIMM = "timm"

ACTIVATIONS: Mapping[str, ConfigFields] = {
    "gelu": {"tanh_gelu": False, "quick_gelu": False},
    "gelu_new": {"tanh_gelu": True, "quick_gelu": False},
    "gelu_pytorch_tanh": {"tanh_gelu": True, "quick_gelu": False},
    "quick_gelu": {"tanh_gelu": False, "quick_gelu": True},
}
"""Value of `hidden_act` → fields of `ViTConfig`."""


@dataclass(frozen=True)
class HFConfig:
    """A config, or a section of one. Every method raises ValueError that names the field, its value and the accepted ones."""

    content: Mapping[str, Any]
    source: str = FILE

    @staticmethod
    def from_description(description: Mapping[str, Any]) -> HFConfig:
        return HFConfig(description[KEY])

    def section(self, name: str) -> HFConfig:
        """Return an object of the config; an empty one if it is missing."""
        value = self.content.get(name) or {}
        if not isinstance(value, Mapping):
            raise self.refusal(name, value, "an object")
        return HFConfig(value, f"{self.source}: {name}")

    def integer(self, name: str, default: int) -> int:
        """Return a positive integer."""
        return int(self._require_valid(name, default, lambda value: type(value) is int and value >= 1, "a positive integer"))

    def index(self, name: str, default: int) -> int:
        """Return an integer from 0."""
        return int(self._require_valid(name, default, lambda value: type(value) is int and value >= 0, "an integer from 0"))

    def number(self, name: str, default: float) -> float:
        """Return a positive number."""
        return float(
            self._require_valid(name, default, lambda value: _is_number(value) and 0 < value <= sys.float_info.max, "a positive number")
        )

    def share(self, name: str, default: float) -> float:
        """Return a number from 0 to less than 1."""
        return float(
            self._require_valid(name, default, lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to less than 1")
        )

    def flag(self, name: str, default: bool) -> bool:
        return bool(self._require_valid(name, default, lambda value: isinstance(value, bool), "true or false"))

    def side(self, name: str, default: int) -> int:
        """Return the side of a square: an integer, or two equal ones."""
        value = self._value(name, default)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if type(value) is not int or not 0 < value <= MAX_SIDE:
            raise self.refusal(name, value, f"an integer from 1 to {MAX_SIDE}, for squares")
        return value

    def require(self, name: str, accepted: Any, default: Any) -> None:
        """Refuse any value but one: the network would be another one."""
        value = self._value(name, default)
        if value != accepted:
            raise ValueError(f"{self.refusal(name, value, repr(accepted))}; {ONNX_ADVICE}")

    def require_colour(self) -> None:
        value = self._value("num_channels", 3)
        if value != 3:
            raise self.refusal("num_channels", value, "3")

    def activation(self, default: str, accepted: Iterable[str] = tuple(ACTIVATIONS)) -> ConfigFields:
        value, names = self._value("hidden_act", default), list(accepted)
        if value not in names:
            raise ValueError(f"{self.refusal('hidden_act', value, ', '.join(names))}; {ONNX_ADVICE}")
        return dict(ACTIVATIONS[value])

    def refusal(self, name: str, value: Any, accepted: str) -> ValueError:
        return ValueError(f"{self.source}: {name} {value!r} cannot be computed here; accepted is {accepted}")

    def _require_valid(self, name: str, default: Any, is_valid: Callable[[Any], bool], accepted: str) -> Any:
        value = self._value(name, default)
        if not is_valid(value):
            raise self.refusal(name, value, accepted)
        return value

    def _value(self, name: str, default: Any) -> Any:
        value = self.content.get(name)
        return default if value is None else value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def image_size(description: Mapping[str, Any], default: int) -> int:
    """Return the `image_size` of a network whose position table has only that size; images must be prepared to it."""
    declared, prepared = HFConfig.from_description(description).side("image_size", default), prepared_size(description)
    if prepared is not None and prepared != declared:
        source = description[PROCESSOR].source
        raise ValueError(f"{FILE}: image_size {declared} is not the {prepared} pixels that {source} makes; both must agree")
    return declared


def prepared_size(description: Mapping[str, Any]) -> int | None:
    """Return the side of the images that `preprocessor_config.json` prepares; None without that file."""
    processor = description.get(PROCESSOR)
    return None if processor is None else processor.image_size


def labels(content: Mapping[str, Any]) -> list[str]:
    """Return `id2label` in the order of its numbers; empty if a config has none. Raises ValueError."""
    table = content.get("id2label")
    if table is None:
        return []
    try:
        numbered = {int(index): str(name) for index, name in table.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{FILE}: id2label: it must map the numbers of the classes to names") from error
    if sorted(numbered) != list(range(len(numbered))):
        raise ValueError(f"{FILE}: id2label: its numbers must be 0 to {len(numbered) - 1}, without gaps")
    return [numbered[index] for index in range(len(numbered))]
