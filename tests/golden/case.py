"""A recorded case: a folder with `case.safetensors` and, where there are weights, `checkpoint.pth`.

`case.safetensors` holds the recorded tensors, and in its metadata, under `case`, the JSON that describes them. Folders with `case.json` and
`io.safetensors` in its place are read, too. A tree of many small files is an archive, `checkpoint.tar`: `unpack` reads it.
"""

from __future__ import annotations

import atexit
import gzip
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = Path(__file__).parent
"""Cases by system."""
PROSE = frozenset({"system", "what", "inputs", "outputs", "mids", "notes", "container", "model", "produced_by"})
"""Keys of a description that explain; `config`, `atol`, `rtol`, `atol_grad` and `tolerance_overrides` are used; any other is a recorded
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
    """Recorded expectations in JSON: parameter groups, schedules and others."""
    tolerance: Tolerance
    overrides: dict[str, Tolerance]
    """Pattern of an output's name → its tolerance."""

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pth"

    def tolerance_of(self, output: str) -> Tolerance:
        return next((tolerance for pattern, tolerance in self.overrides.items() if fnmatchcase(output, pattern)), self.tolerance)


@dataclass
class Replay:
    """The output of our code for a case's inputs."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    intermediates: dict[str, Tensor] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)
    """Our version of each recorded expectation, in the same form; inputs among them are copied."""


def find_cases(*folders: Path) -> Iterator[Path]:
    """Folders of recorded cases below these, sorted within each."""
    for folder in folders:
        yield from sorted({file.parent for name in ("case.safetensors", "case.json") for file in folder.rglob(name)})


def read_recording(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a case's description and its tensors, as they were recorded."""
    file = folder / "case.safetensors"
    if not file.is_file():
        return json.loads((folder / "case.json").read_text()), load_file(folder / "io.safetensors")
    with safe_open(file, "pt") as content:
        return json.loads(content.metadata()["case"]), load_file(file)


def write_recording(folder: Path, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write `case.safetensors` of a new or copied case."""
    save_file(tensors, folder / "case.safetensors", metadata={"case": json.dumps(content)})


@cache
def unpack(folder: Path) -> Path:
    """Return the content of a case's `checkpoint.tar`, in a folder that lasts as long as this process; the case's own folder if it has
    none."""
    if not (folder / "checkpoint.tar").is_file():
        return folder
    copy = Path(tempfile.mkdtemp(prefix="opsin-golden-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    with tarfile.open(folder / "checkpoint.tar") as archive:
        archive.extractall(copy, filter="data")
    return copy


@cache
def published_keys(system: str) -> dict[str, Any]:
    """Return the published checkpoints of a system by name; their `params` are names and shapes."""
    systems: dict[str, dict[str, Any]] = json.loads(gzip.decompress((GOLDEN / "published_keys.json.gz").read_bytes()))
    return systems[system]


def read_case(folder: Path) -> Case:
    content, tensors = read_recording(folder)
    tolerance = Tolerance(content.pop("atol"), content.pop("rtol"))
    overrides = content.pop("tolerance_overrides", {})
    if "atol_grad" in content:
        overrides["grad.*"] = {"atol": content.pop("atol_grad")}
    return Case(
        folder=folder,
        system=content["system"],
        config=content.pop("config"),
        inputs=_select(tensors, "in."),
        outputs=_select(tensors, "out."),
        intermediates=_select(tensors, "mid."),
        recorded={key: value for key, value in content.items() if key not in PROSE},
        tolerance=tolerance,
        overrides={
            pattern: Tolerance(override.get("atol", tolerance.atol), override.get("rtol", tolerance.rtol))
            for pattern, override in overrides.items()
        },
    )


def _select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
