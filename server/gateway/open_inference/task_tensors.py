"""The tensors of a request → the items of a task, and a task's outputs → the requested tensors.

Each row of all inputs is one item. Outputs with labels support Triton's extension `classification`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.gateway.open_inference.datatypes import bytes_array
from server.gateway.open_inference.errors import invalid
from server.gateway.open_inference.tensors import InferRequest, InferTensor, RequestedOutput
from server.http.json_outline import from_base64
from server.http.problems import Problem, ProblemKind
from server.tasks.base import Arrays, Item, RequestPart, Tensor

FIRST_INPUT = ""
"""Name of a raw binary request's input, which is the model's first."""


def read_items(request: InferRequest, model: str, inputs: Sequence[Tensor], parts: Mapping[str, RequestPart], max_items: int) -> list[Item]:
    """Read the items. Binary elements are a part's bytes; JSON strings its base64, or a text itself. Raises Problem."""
    tensors = {tensor.name or inputs[0].name: tensor for tensor in request.inputs}
    names = [declared.name for declared in inputs]
    unexpected = next((name for name in tensors if name not in names), None)
    if unexpected is not None and "labels" in request.parameters:
        raise invalid(f"the parameter 'labels' goes with {' and '.join(names)}, and '{unexpected}' was sent to model '{model}'")
    if unexpected is not None:
        raise invalid(f"unexpected inference input '{unexpected}' for model '{model}'")
    missing = next((name for name in names if name not in tensors and parts[name].required), None)
    if missing is not None or not tensors:
        raise invalid(f"expected the input '{missing or names[0]}' for model '{model}', got none")
    columns = {name: _column(name, tensor, model, parts[name], max_items) for name, tensor in tensors.items()}
    if len({len(column) for column in columns.values()}) > 1:
        raise invalid(f"the inputs of model '{model}' have different batch sizes")
    list_name = next((name for name in columns if parts[name].is_one_item), None)
    if list_name is not None:
        if len(columns) > 1:
            raise invalid(f"model '{model}' takes one input at a time, got {' and '.join(columns)}")
        return [{list_name: msgspec.json.encode([_decode_text(text, list_name, index) for index, text in enumerate(columns[list_name])])}]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _decode_text(text: bytes, name: str, index: int) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise invalid(f"input '{name}': element {index} is not UTF-8 ({error.reason})") from error


def _column(name: str, tensor: InferTensor, model: str, part: RequestPart, max_items: int) -> list[bytes]:
    if tensor.datatype != "BYTES":
        raise invalid(f"inference input '{name}' data-type is '{tensor.datatype}', but model '{model}' expects 'BYTES'")
    shape = tensor.array.shape
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)) or shape[0] == 0:
        raise invalid(f"unexpected shape for input '{name}' for model '{model}'. Expected [-1,1] or [-1], got {list(shape)}")
    max_rows = part.max_count if part.is_one_item and part.max_count is not None else max_items
    if shape[0] > max_rows:
        setting = "" if part.is_one_item else " (OPSIN_MAX_IMAGES)"
        raise Problem(ProblemKind.TOO_LARGE, f"inference request batch-size must be <= {max_rows} for '{model}'{setting}")
    elements: list[bytes] = tensor.array.ravel().tolist()
    if tensor.binary or part.kind == "text":
        return elements
    return [_from_base64(text, name, index) for index, text in enumerate(elements)]


def _from_base64(text: bytes, name: str, index: int) -> bytes:
    try:
        return from_base64(text)
    except ValueError as error:
        raise invalid(
            f"input '{name}': element {index} is not base64 ({error}); in JSON it is base64, in binary data its own bytes"
        ) from error


def check_outputs(request: InferRequest, model: str, outputs: Sequence[Tensor]) -> None:
    """Reject outputs that `write_outputs` could not give, before any work is done. Raises Problem (400)."""
    declared = {output.name: output for output in outputs}
    names = [output.name for output in request.outputs]
    for name in names or [output.name for output in outputs]:
        request.wants_binary(name)
    for output in request.outputs:
        if output.name not in declared:
            raise invalid(f"unexpected inference output '{output.name}' for model '{model}'")
        if names.count(output.name) > 1:
            raise invalid(f"output '{output.name}' is requested twice")
        if _classification(output) and not declared[output.name].labels:
            labelled = " or ".join(f"'{other.name}'" for other in outputs if other.labels) or "none"
            raise invalid(f"output '{output.name}': classification needs an output with labels; this model's: {labelled}")


def write_outputs(request: InferRequest, outputs: Sequence[Tensor], arrays: Arrays) -> list[InferTensor]:
    """Return the requested outputs, in their order, or all of them if none was requested."""
    declared = {output.name: output for output in outputs}
    requested = request.outputs or tuple(RequestedOutput(output.name) for output in outputs)
    return [_write(output, declared[output.name], arrays[output.name], binary=request.wants_binary(output.name)) for output in requested]


def _write(requested: RequestedOutput, declared: Tensor, array: NDArray[Any], *, binary: bool) -> InferTensor:
    count = _classification(requested)
    if count:
        return InferTensor(declared.name, "BYTES", _top_classes(array, declared.labels, count), binary)
    if declared.is_file and not binary:
        array = bytes_array([base64.b64encode(file) for file in array.flat]).reshape(array.shape)
    return InferTensor(declared.name, declared.datatype, array, binary)


def _classification(output: RequestedOutput) -> int:
    """Return the number of requested `value:index:label` strings. 0 for the values themselves."""
    count = (output.parameters or {}).get("classification", 0)
    if type(count) is not int or count < 0:
        raise invalid(f"output '{output.name}': classification must be an integer of at least 0")
    return count


def _top_classes(values: NDArray[Any], labels: Sequence[str], count: int) -> NDArray[Any]:
    """Return `value:index:label` for the `count` highest values (rows, labels) of each row; equal ones in the order of the labels."""
    best = np.argsort(-values, axis=1, kind="stable")[:, :count]
    array = np.empty(best.shape, object)
    array[:] = [
        [f"{row[index]:f}:{index}:{labels[index]}".encode() for index in indices] for row, indices in zip(values, best, strict=True)
    ]
    return array
