"""The process that tries a graph: `python -m models.systems.onnx.trial_program`. See `models.systems.onnx.trial`.

It is executed for each graph, and so imports no pydantic, which takes a third of its time to start.
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
from models.systems.onnx.session import ended_after, first_line, open_session
from models.systems.onnx.signature import (
    MAX_BYTES,
    PACK,
    UNSIZED,
    ImageInput,
    described,
    external_files,
    image_input,
    is_depth,
    is_inpainting,
    parse,
)
from models.systems.onnx.trial import COPIES, MEMORY_BYTES, PATIENCE_S, RUN_S

BATCH = 3
"""Images of the trial, where the graph takes any number. Exporters that trace a batch of two or four leave these sizes in the graph."""
SUM_ERROR = 1e-3
OTHERS_SHARE = 0.05
"""Share of the largest number by which an answer may change with the other images of its batch: dynamic quantisation takes its range from
all of them."""
MOST_SAID = 600
"""Characters of a refusal, which quotes names from the file."""
DECISIVE = frozenset({"logits", "pooler_output", "image_embeds", "embedding", "embeddings"})
"""Names of an output that is taken though others have a row of numbers for each image as well."""
CORNERS = 4
Outputs = Mapping[str, Any]


def main() -> None:
    asked = confined_process.receive_request()
    try:
        answer = examine(Path(asked.pop("file")), **asked)
    except MemoryError:
        answer = {"error": _too_much()}
    except (ValueError, OSError) as error:
        answer = {"error": _brief(str(error))}
    confined_process.write_message(answer)


def examine(
    file: Path, *, image_size: int | None, stated_size: int | None, largest_side: int, output: str | None, of_image: bool
) -> dict[str, Any]:
    """The fields of `Trial`. The rest: see `try_graph`. Raises ValueError, OSError and MemoryError."""
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes are above the limit of {MAX_BYTES} of ONNX files; {PACK}")
    _limit(size)
    content = file.read_bytes()
    model = parse(content)
    files = external_files(model)
    for name in files:
        if not (file.parent / name).is_file() or (file.parent / name).is_symlink():
            raise ValueError(f"its weights lie in {name}, which is missing in the graph's folder, or a link: put the file itself there")
    _limit(size + sum((file.parent / name).stat().st_size for name in files))
    if not of_image and (is_inpainting(model) or is_depth(model)):
        return {"files": files, "purpose": "onnx_inpaint" if is_inpainting(model) else "onnx_depth"}
    given = image_input(model)
    side = _side(given, image_size, stated_size, largest_side)
    declared = [described(value) for value in model.graph.output]
    del model
    outputs, alone = _run(content, file.parent, given, side)
    name, rows = _chosen(outputs, declared, given.batch or BATCH, output)
    if not np.isfinite(rows).all():
        raise ValueError(f"its output {name} holds values that are infinite or not a number, for an image of noise")
    if not rows.any(axis=1).all():
        raise ValueError(f"its output {name} is all zeros for an image of noise")
    if alone is not None:
        _check_alone(name, rows[0], alone[name])
    return {
        "files": files,
        "purpose": "onnx",
        "type": given.type,
        "image_size": side,
        "sized_by_files": given.side is None and image_size is None,
        "batch": given.batch,
        "output": name,
        "others": [other for other in outputs if other != name],
        "numbers": rows.shape[1],
        "probabilities": bool((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) < SUM_ERROR).all()),
    }


def _limit(weights: int) -> None:
    """Bound this process: what strangers sent is read and run in it."""
    nbytes = MEMORY_BYTES + COPIES * weights
    resource.setrlimit(resource.RLIMIT_AS, (nbytes, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(PATIENCE_S), int(PATIENCE_S) + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _side(given: ImageInput, set_: int | None, stated: int | None, largest: int) -> int:
    if given.side is not None and set_ not in (None, given.side):
        raise ValueError(f"image_size {set_}: it takes images of {given.side} × {given.side} pixels alone")
    side = given.side or set_ or stated
    if side is None:
        raise ValueError(UNSIZED)
    if not 0 < side <= largest:
        raise ValueError(f"image_size {side} is outside 1..{largest}")
    return side


def _run(content: bytes, folder: Path, given: ImageInput, side: int) -> tuple[Outputs, Outputs | None]:
    """All outputs for images of noise; and those for the first one alone, if the graph takes any number."""
    shape = given.shape(given.batch or BATCH, side)
    pixels = default_rng(0).integers(0, 256, shape, np.uint8)
    images = pixels if given.type == "uint8" else (pixels / 127.5 - 1).astype(given.type)
    session = open_session(content, None, 1, folder)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # from here on it opens no file
    names, answers = [output.name for output in session.get_outputs()], []
    try:
        with ended_after(RUN_S) as options:
            for part in [images] if given.batch else [images, images[:1]]:
                shape = part.shape
                answers.append(dict(zip(names, session.run(names, {given.name: part}, options), strict=True)))
            return answers[0], None if given.batch else answers[1]
    except Exception as error:  # ONNX Runtime's own exceptions derive from Exception alone
        if _is_memory(error):
            raise MemoryError from error
        raise ValueError(f"it fails on a batch of {shape[0]} of {side} × {side} pixels: {first_line(error)}") from error


def _chosen(outputs: Outputs, declared: list[str], batch: int, asked: str | None) -> tuple[str, NDArray[np.float32]]:
    """Name and rows of the output that answers."""
    rows = {name: found for name, value in outputs.items() if (found := _rows(value, batch)) is not None}
    if asked is not None and asked not in rows:
        what = "has no row of numbers for each image" if asked in outputs else "is no output"
        raise ValueError(f"output {asked}: {what}; {_listed(declared, rows)}")
    named = [name for name in rows if name.lower() in DECISIVE]
    like = [name for name, value in outputs.items() if _is_row(value, batch)]
    if not rows or (len(like) > 1 and asked is None and len(named) != 1):
        _check_detector(outputs, rows)
        raise ValueError(f"{_listed(declared, rows)}" + ("; --set output=NAME chooses one" if rows else ""))
    name = asked or next(iter(named if len(named) == 1 else rows))
    _check_detector(outputs, {name: rows[name]})
    return name, rows[name]


def _check_alone(name: str, among: NDArray[np.float32], value: Any) -> None:
    """Raises ValueError unless the first image's row among the others is, nearly, the one that it gets `alone`."""
    found = _rows(value, 1)
    if found is None or found.shape[1:] != among.shape or not np.abs(found[0] - among).max() <= OTHERS_SHARE * np.abs(among).max():
        raise ValueError(
            f"its output {name} for an image changes with the other images of its batch; export it for inference, as after model.eval(), "
            "or with a fixed batch of one"
        )


def _check_detector(outputs: Outputs, rows: Mapping[str, NDArray[np.float32]]) -> None:
    """Raises ValueError where an output has a number for each of the boxes of another."""
    for name, found in rows.items():
        for other, value in outputs.items():
            if isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[1:] == (found.shape[1], CORNERS):
                raise ValueError(
                    f"its output {name} holds a score for each of the {found.shape[1]} boxes of {other}: a detector's, and only "
                    "classifiers and encoders of whole images are served"
                )


def _listed(declared: list[str], rows: Mapping[str, Any]) -> str:
    fit = f"; those with a row of numbers for each image are {', '.join(rows)}" if rows else ""
    needed = "" if rows else "; one of (batch, two or more numbers) is needed, logits of classes or vectors"
    return f"its outputs are {', '.join(declared) or 'none'}{fit}{needed}"


def _rows(value: Any, batch: int) -> NDArray[np.float32] | None:
    """A row of at least two numbers for each image; None for any other output."""
    return value.reshape(batch, -1).astype(np.float32) if _is_row(value, batch) and value.dtype.kind == "f" else None


def _is_row(value: Any, batch: int) -> bool:
    """Whether an output has one row of at least two values for each image, be they floats or integers."""
    if not isinstance(value, np.ndarray) or value.ndim < 2 or value.shape[0] != batch:
        return False
    return value.shape[1] > 1 and all(side == 1 for side in value.shape[2:])


def _brief(text: str) -> str:
    return text if len(text) <= MOST_SAID else f"{text[: MOST_SAID // 2]} … {text[-MOST_SAID // 2 :]}"


def _is_memory(error: Exception) -> bool:
    return any(word in str(error) for word in ("bad_alloc", "bad allocation", "allocate memory", "std::bad", "Failed to allocate"))


def _too_much() -> str:
    return f"it needs more than the {MEMORY_BYTES >> 20} MiB, and {COPIES} times its weights, that a trial may have"


if __name__ == "__main__":
    main()
