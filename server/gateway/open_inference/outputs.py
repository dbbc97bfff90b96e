"""A task's outputs → the requested tensors, with Triton's extension `classification` if an output has labels."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.gateway.open_inference.datatypes import bytes_array
from server.gateway.open_inference.errors import invalid
from server.gateway.open_inference.tensors import InferRequest, InferTensor, RequestedOutput
from server.tasks.base import Arrays, Tensor


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
