"""Trial of an ONNX graph before it becomes a bundle: a confined process reads, checks, opens and runs it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.processes.confined_process import ConfinedProcess, ProcessDied

PROGRAM = "models.systems.onnx.trial_program"
MEMORY_BYTES = 2**30
"""Address space of the process: 0.2 GiB of libraries, and the graph's activations."""
WEIGHT_COPIES = 4
"""Number of copies of the weights in its memory: the file, its messages, its tensors, and these in the layout of the CPU's kernels."""
RUN_S = 40.0
"""Timeout in seconds of the graph's trial batch on one CPU."""
PATIENCE_S = 55.0
"""Timeout in seconds of the whole trial."""


@dataclass(frozen=True)
class Trial:
    """Result of a trial. `image_size` and the following fields are empty for a graph with another signature than an image's."""

    files: tuple[str, ...]
    """Names of the files in the graph's folder with weights."""
    purpose: str
    """Architecture by the graph's signature: `onnx`, `onnx_inpaint` or `onnx_depth`."""
    type: str = ""
    image_size: int = 0
    sized_by_files: bool = False
    """Whether the graph takes several sizes and `image_size` is the declared one."""
    batch: int | None = None
    output: str = ""
    others: tuple[str, ...] = ()
    numbers: int = 0
    """Length of the output's row for one image."""
    probabilities: bool = False
    """Whether the rows are at least 0 and sum to 1."""


def try_graph(
    file: Path, *, image_size: int | None, stated_size: int | None, largest_side: int, output: str | None, of_image: bool
) -> Trial:
    """Read, check and run a graph in a confined process. Raises ValueError with a sentence for the user.

    image_size: as set by hand. stated_size: for a graph that takes several sizes, if none is set. largest_side: limit of the size. output:
    name of the one to use; None to infer it. of_image: it classifies or embeds, whatever its signature.
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
            message = program.message()
    except ProcessDied as error:
        raise ValueError(_reason(error)) from error
    if "error" in message:
        raise ValueError(message["error"])
    return Trial(**{**message, "files": tuple(message["files"]), "others": tuple(message.get("others", ()))})


def _reason(death: ProcessDied) -> str:
    if death.late:
        return f"the trial has not ended after {PATIENCE_S:.0f} s on one CPU"
    return f"the trial's process died ({death}); it may have {MEMORY_BYTES >> 20} MiB and {WEIGHT_COPIES} times the weights"
