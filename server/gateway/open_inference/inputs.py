"""The tensors of a request → the items of a task: each row of all inputs is one item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from server.gateway.open_inference.errors import invalid
from server.gateway.open_inference.tensors import InferRequest, InferTensor
from server.http.json_outline import from_base64
from server.http.problems import Problem, ProblemKind
from server.tasks.base import Item, RequestPart, Tensor

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
