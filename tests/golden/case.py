"""A recorded case: a folder with `case.json`, `io.safetensors` and, where there are weights, `checkpoint.pth`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent
"""Cases by system."""
PROSE = frozenset({"system", "what", "inputs", "outputs", "mids", "notes", "container", "model", "produced_by"})
"""Keys of case.json that explain; `config`, `atol`, `rtol`, `atol_grad` and `tolerance_overrides` are used; any other is a recorded
expectation, or a note if it is a text that no replay knows."""


@dataclass(frozen=True)
class Tolerance:
    atol: float
    rtol: float


@dataclass(frozen=True)
class Case:
    folder: Path
    system: str
    config: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    """Recorded values, by their names without `out.`."""
    intermediates: dict[str, Tensor]
    recorded: dict[str, Any]
    """Recorded expectations in JSON: parameter groups, schedules, …"""
    tolerance: Tolerance
    overrides: dict[str, Tolerance]
    """Pattern of an output's name → its tolerance."""

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pth"

    def tolerance_of(self, output: str) -> Tolerance:
        return next((tolerance for pattern, tolerance in self.overrides.items() if fnmatchcase(output, pattern)), self.tolerance)


@dataclass
class Replayed:
    """What our code answers to a case's inputs."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    intermediates: dict[str, Tensor] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)
    """Our version of each recorded expectation, in the same form; what is no expectation but input is copied."""


def read_case(folder: Path) -> Case:
    content = json.loads((folder / "case.json").read_text())
    tensors = load_file(folder / "io.safetensors")
    tolerance = Tolerance(content.pop("atol"), content.pop("rtol"))
    overrides = content.pop("tolerance_overrides", {})
    if "atol_grad" in content:
        overrides["grad.*"] = {"atol": content.pop("atol_grad")}
    return Case(
        folder=folder,
        system=content["system"],
        config=content.pop("config"),
        inputs=_named(tensors, "in."),
        outputs=_named(tensors, "out."),
        intermediates=_named(tensors, "mid."),
        recorded={key: value for key, value in content.items() if key not in PROSE},
        tolerance=tolerance,
        overrides={
            pattern: Tolerance(override.get("atol", tolerance.atol), override.get("rtol", tolerance.rtol))
            for pattern, override in overrides.items()
        },
    )


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
