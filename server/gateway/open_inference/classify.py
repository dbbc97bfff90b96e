"""A classify bundle in tensors: pictures in, `scores` and `labels` out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import BundleSpec
from server.gateway import base64_text
from server.gateway.open_inference.errors import invalid
from server.gateway.open_inference.tensors import InferRequest, RequestedOutput, Tensor
from server.gateway.problems import Kind, Problem

IMAGE = "image"
SCORES = "scores"
LABELS = "labels"


def label_count(spec: BundleSpec) -> int:
    """`labels` holds the five best, or all where there are fewer."""
    return min(5, len(spec.labels))


def read_pictures(request: InferRequest, model: str, max_images: int) -> list[bytes]:
    """The encoded pictures of the input `image`, one per row. Raises Problem.

    Binary elements are the pictures' bytes, JSON strings their base64.
    """
    unexpected = next((tensor.name for tensor in request.inputs if tensor.name != IMAGE), None)
    if unexpected is not None:
        raise invalid(f"unexpected inference input '{unexpected}' for model '{model}'")
    if not request.inputs:
        raise invalid(f"expected the input '{IMAGE}' for model '{model}', got none")
    (image,) = request.inputs
    if image.datatype != "BYTES":
        raise invalid(f"inference input '{IMAGE}' data-type is '{image.datatype}', but model '{model}' expects 'BYTES'")
    shape = image.array.shape
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)) or shape[0] == 0:
        raise invalid(f"unexpected shape for input '{IMAGE}' for model '{model}'. Expected [-1,1] or [-1], got {list(shape)}")
    if shape[0] > max_images:
        raise Problem(Kind.TOO_LARGE, f"inference request batch-size must be <= {max_images} for '{model}' (OPSIN_MAX_IMAGES)")
    elements: list[bytes] = image.array.ravel().tolist()
    return elements if image.binary else [_from_base64(text, index) for index, text in enumerate(elements)]


def check_outputs(request: InferRequest, model: str) -> None:
    """Refuse what `write_outputs` could not give, before any work is done. Raises Problem (400)."""
    names = [output.name for output in request.outputs]
    for output in request.outputs:
        if output.name not in (SCORES, LABELS):
            raise invalid(f"unexpected inference output '{output.name}' for model '{model}'")
        if names.count(output.name) > 1:
            raise invalid(f"output '{output.name}' is asked for twice")
        count = _classification(output)
        if output.name == LABELS and count:
            raise invalid(f"'classification' is for the output '{SCORES}', not for '{LABELS}'")


def write_outputs(request: InferRequest, scores: NDArray[np.float32], spec: BundleSpec) -> list[Tensor]:
    """The outputs that were asked for, in that order. `scores`: (pictures, classes), softmax."""
    asked = request.outputs or (RequestedOutput(SCORES), RequestedOutput(LABELS))
    return [_write_output(output, scores, spec, binary=request.wants_binary(output.name)) for output in asked]


def _write_output(output: RequestedOutput, scores: NDArray[np.float32], spec: BundleSpec, *, binary: bool) -> Tensor:
    if output.name == LABELS:
        best = [[spec.labels[index].encode() for index in row] for row in _best(scores, label_count(spec))]
        return Tensor(LABELS, "BYTES", _strings(best), binary)
    count = min(_classification(output), scores.shape[1])
    if count:
        best = [
            [f"{row[index]:f}:{index}:{spec.labels[index]}".encode() for index in indices]
            for row, indices in zip(scores, _best(scores, count), strict=True)
        ]
        return Tensor(SCORES, "BYTES", _strings(best), binary)
    return Tensor(SCORES, "FP32", scores, binary)


def _classification(output: RequestedOutput) -> int:
    """How many `value:index:label` strings are wanted in place of the scores; 0: the scores themselves."""
    count = (output.parameters or {}).get("classification", 0)
    if type(count) is not int or count < 0:
        raise invalid(f"output '{output.name}': classification must be an integer of at least 0")
    return count


def _best(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """(pictures, count) class indices, best first; equal scores in the order of the classes."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def _strings(rows: list[list[bytes]]) -> NDArray[Any]:
    array = np.empty((len(rows), len(rows[0])), object)
    array[:] = rows
    return array


def _from_base64(text: bytes, index: int) -> bytes:
    try:
        return base64_text.decode(text)
    except ValueError as error:
        raise invalid(
            f"input '{IMAGE}': element {index} is no base64 ({error}); a picture in JSON is base64, in binary data its own bytes"
        ) from error
