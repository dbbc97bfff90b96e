"""The trial of an ONNX graph before it becomes a bundle: a confined process reads, checks, opens and runs it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.processes.confined_process import ConfinedProcess, ProcessDied

PROGRAM = "models.systems.onnx.trial_program"
MEMORY_BYTES = 2**30
"""Address space of the process: 0.2 GiB of libraries, and what a graph computes with."""
COPIES = 4
"""Copies of the weights that it may have as well: the file, its messages, its tensors, and these in the layout of the CPU's kernels."""
RUN_S = 40.0
"""Seconds that a graph may take for the trial's batch on one CPU."""
PATIENCE_S = 55.0
"""Seconds for all of it."""


@dataclass(frozen=True)
class Trial:
    """The result of a trial: `image_size` and what follows is empty for a graph of another signature than an image's."""

    files: tuple[str, ...]
    """Names of the files in the graph's folder that hold weights."""
    purpose: str
    """The architecture that a graph's signature tells: `onnx`, `onnx_inpaint` or `onnx_depth`."""
    type: str = ""
    image_size: int = 0
    sized_by_files: bool = False
    """Whether the graph takes several sizes and `image_size` is the one that was stated."""
    batch: int | None = None
    output: str = ""
    others: tuple[str, ...] = ()
    """Outputs that are left out."""
    numbers: int = 0
    """Length of the output's row for one image."""
    probabilities: bool = False
    """Whether the rows are at least 0 and sum to 1."""


def try_graph(
    file: Path, *, image_size: int | None, stated_size: int | None, largest_side: int, output: str | None, of_image: bool
) -> Trial:
    """Read, check and run a graph in a confined process.

    image_size: as set by hand. stated_size: of a graph that takes several sizes, where none is set. largest_side: limit of the size.
    output: name of the one that answers; None to find it. of_image: it classifies or embeds, whatever its signature looks like.
    Raises ValueError with a sentence for the user.
    """
    if not file.is_file():
        raise ValueError("there is no such file")
    request = {
        "file": str(file.absolute()),
        "image_size": image_size,
        "stated_size": stated_size,
        "largest_side": largest_side,
        "output": output,
        "of_image": of_image,
    }
    try:
        with ConfinedProcess(PROGRAM, b"", request, patience=PATIENCE_S) as program:
            said = program.message()
    except ProcessDied as error:
        raise ValueError(_reason(error)) from error
    if "error" in said:
        raise ValueError(said["error"])
    return _trial(said)


def _reason(death: ProcessDied) -> str:
    if death.late:
        return f"the trial has not ended after {PATIENCE_S:.0f} s on one CPU"
    return f"the trial's process died ({death}); it may have {MEMORY_BYTES >> 20} MiB and {COPIES} times the weights"


def _trial(said: Mapping[str, Any]) -> Trial:
    return Trial(**{**said, "files": tuple(said["files"]), "others": tuple(said.get("others", ()))})
