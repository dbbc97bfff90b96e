"""Program that tries a graph: `python -m models.systems.onnx.trial_program`. See `models.systems.onnx.trial`.

It is executed for each graph, and so does not import pydantic, which takes a third of its time to start.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import default_rng  # NumPy would open its file later
from numpy.typing import NDArray

from models.processes import confined_process
from models.systems.onnx.session import first_line, open_session, run_timeout
from models.systems.onnx.signature import (
    MAX_BYTES,
    PACK_HINT,
    SIZE_HINT,
    ImageInput,
    describe_value,
    external_files,
    image_input,
    is_depth,
    is_inpainting,
    parse_graph,
)
from models.systems.onnx.trial import MEMORY_BYTES, PATIENCE_S, RUN_S, WEIGHT_COPIES

TRIAL_BATCH = 3
"""Images of the trial if the graph takes any number: exporters that trace a batch of two or four leave these sizes in the graph."""
SUM_ERROR = 1e-3
MAX_BATCH_EFFECT = 0.05
"""Maximum ratio, to the largest number, by which an output may change with the other images of its batch: dynamic quantisation uses the
range of all of them."""
MAX_MESSAGE_CHARACTERS = 600
"""Maximum number of characters of a refusal, which quotes names from the file."""
DECISIVE_NAMES = frozenset({"logits", "pooler_output", "image_embeds", "embedding", "embeddings"})
"""Names of an output that is used even if others have a row of numbers per image as well."""
BOX_VALUES = 4
Outputs = Mapping[str, Any]


def main() -> None:
    request = confined_process.receive_request()
    try:
        reply = examine(Path(request.pop("file")), **request)
    except MemoryError:
        reply = {"error": _memory_message()}
    except (ValueError, OSError) as error:
        reply = {"error": _shorten(str(error))}
    confined_process.write_message(reply)


def examine(
    file: Path, *, image_size: int | None, stated_size: int | None, largest_side: int, output: str | None, of_image: bool
) -> dict[str, Any]:
    """Return the fields of `Trial`. Arguments are those of `try_graph`. Raises ValueError, OSError and MemoryError."""
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes are above the limit of {MAX_BYTES} of ONNX files; {PACK_HINT}")
    _limit(size)
    content = file.read_bytes()
    model = parse_graph(content)
    files = external_files(model)
    for name in files:
        if not (file.parent / name).is_file() or (file.parent / name).is_symlink():
            raise ValueError(f"its weights are in {name}, which is missing in the graph's folder, or a link: put the file itself there")
    _limit(size + sum((file.parent / name).stat().st_size for name in files))
    if not of_image and (is_inpainting(model) or is_depth(model)):
        return {"files": files, "purpose": "onnx_inpaint" if is_inpainting(model) else "onnx_depth"}
    graph_input = image_input(model)
    side = _side(graph_input, image_size, stated_size, largest_side)
    declared = [describe_value(value) for value in model.graph.output]
    del model
    outputs, alone = _run(content, file.parent, graph_input, side)
    name, rows = _choose_output(outputs, declared, graph_input.batch or TRIAL_BATCH, output)
    if not np.isfinite(rows).all():
        raise ValueError(f"its output {name} holds values that are infinite or not a number, for an image of noise")
    if not rows.any(axis=1).all():
        raise ValueError(f"its output {name} is all zeros for an image of noise")
    if alone is not None:
        _check_alone(name, rows[0], alone[name])
    return {
        "files": files,
        "purpose": "onnx",
        "type": graph_input.type,
        "image_size": side,
        "sized_by_files": graph_input.side is None and image_size is None,
        "batch": graph_input.batch,
        "output": name,
        "others": [other for other in outputs if other != name],
        "numbers": rows.shape[1],
        "probabilities": bool((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) < SUM_ERROR).all()),
    }


def _limit(weights: int) -> None:
    """Limit this process, since it reads and runs files of strangers."""
    nbytes = MEMORY_BYTES + WEIGHT_COPIES * weights
    resource.setrlimit(resource.RLIMIT_AS, (nbytes, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(PATIENCE_S), int(PATIENCE_S) + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _side(graph_input: ImageInput, overridden: int | None, declared: int | None, max_side: int) -> int:
    if graph_input.side is not None and overridden not in (None, graph_input.side):
        raise ValueError(f"image_size {overridden}: it takes images of {graph_input.side} × {graph_input.side} pixels alone")
    side = graph_input.side or overridden or declared
    if side is None:
        raise ValueError(SIZE_HINT)
    if not 0 < side <= max_side:
        raise ValueError(f"image_size {side} is outside 1..{max_side}")
    return side


def _run(content: bytes, folder: Path, graph_input: ImageInput, side: int) -> tuple[Outputs, Outputs | None]:
    """Return all outputs for images of noise; and those for the first one alone, if the graph takes any number."""
    shape = graph_input.shape(graph_input.batch or TRIAL_BATCH, side)
    pixels = default_rng(0).integers(0, 256, shape, np.uint8)
    images = pixels if graph_input.type == "uint8" else (pixels / 127.5 - 1).astype(graph_input.type)
    session = open_session(content, None, 1, folder)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # from here on it opens no file
    names, answers = [output.name for output in session.get_outputs()], []
    try:
        with run_timeout(RUN_S) as options:
            for part in [images] if graph_input.batch else [images, images[:1]]:
                shape = part.shape
                answers.append(dict(zip(names, session.run(names, {graph_input.name: part}, options), strict=True)))
            return answers[0], None if graph_input.batch else answers[1]
    except Exception as error:  # ONNX Runtime's own exceptions derive from Exception alone
        if _is_memory(error):
            raise MemoryError from error
        raise ValueError(f"it fails on a batch of {shape[0]} of {side} × {side} pixels: {first_line(error)}") from error


def _choose_output(outputs: Outputs, declared: list[str], batch: int, requested: str | None) -> tuple[str, NDArray[np.float32]]:
    rows = {name: row for name, value in outputs.items() if (row := _rows(value, batch)) is not None}
    if requested is not None and requested not in rows:
        problem = "has no row of numbers for each image" if requested in outputs else "is not an output"
        raise ValueError(f"output {requested}: {problem}; {_describe_outputs(declared, rows)}")
    decisive = [name for name in rows if name.lower() in DECISIVE_NAMES]
    candidates = [name for name, value in outputs.items() if _is_row(value, batch)]
    if not rows or (len(candidates) > 1 and requested is None and len(decisive) != 1):
        _check_detector(outputs, rows)
        raise ValueError(f"{_describe_outputs(declared, rows)}" + ("; --set output=NAME chooses one" if rows else ""))
    name = requested or next(iter(decisive if len(decisive) == 1 else rows))
    _check_detector(outputs, {name: rows[name]})
    return name, rows[name]


def _check_alone(name: str, batched_row: NDArray[np.float32], value: Any) -> None:
    """Raise ValueError unless the first image's row is nearly the same in the batch and alone."""
    alone = _rows(value, 1)
    if (
        alone is None
        or alone.shape[1:] != batched_row.shape
        or not np.abs(alone[0] - batched_row).max() <= MAX_BATCH_EFFECT * np.abs(batched_row).max()
    ):
        raise ValueError(
            f"its output {name} for an image changes with the other images of its batch; export it for inference, as after model.eval(), "
            "or with a fixed batch of one"
        )


def _check_detector(outputs: Outputs, rows: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise ValueError if an output has a number for each of the boxes of another."""
    for name, row in rows.items():
        for other, value in outputs.items():
            if isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[1:] == (row.shape[1], BOX_VALUES):
                raise ValueError(
                    f"its output {name} holds a score for each of the {row.shape[1]} boxes of {other}: a detector's, and only "
                    "classifiers and encoders of whole images are served"
                )


def _describe_outputs(declared: list[str], rows: Mapping[str, Any]) -> str:
    fit = f"; those with a row of numbers for each image are {', '.join(rows)}" if rows else ""
    needed = "" if rows else "; one of (batch, two or more numbers) is needed, logits of classes or vectors"
    return f"its outputs are {', '.join(declared) or 'none'}{fit}{needed}"


def _rows(value: Any, batch: int) -> NDArray[np.float32] | None:
    """Return a row of at least two numbers per image; None for any other output."""
    return value.reshape(batch, -1).astype(np.float32) if _is_row(value, batch) and value.dtype.kind == "f" else None


def _is_row(value: Any, batch: int) -> bool:
    """Return True if an output has one row of at least two values per image, floats or integers."""
    if not isinstance(value, np.ndarray) or value.ndim < 2 or value.shape[0] != batch:
        return False
    return value.shape[1] > 1 and all(side == 1 for side in value.shape[2:])


def _shorten(text: str) -> str:
    return (
        text if len(text) <= MAX_MESSAGE_CHARACTERS else f"{text[: MAX_MESSAGE_CHARACTERS // 2]} … {text[-MAX_MESSAGE_CHARACTERS // 2 :]}"
    )


def _is_memory(error: Exception) -> bool:
    return any(word in str(error) for word in ("bad_alloc", "bad allocation", "allocate memory", "std::bad", "Failed to allocate"))


def _memory_message() -> str:
    return f"it needs more than the {MEMORY_BYTES >> 20} MiB, and {WEIGHT_COPIES} times its weights, that a trial may have"


if __name__ == "__main__":
    main()
