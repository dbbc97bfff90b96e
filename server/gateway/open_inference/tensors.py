"""An inference request and its response in the protocol's layout: a JSON object, then the binary tensors in the order of the JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from numpy.typing import NDArray

from server.gateway.open_inference import datatypes
from server.gateway.open_inference.errors import invalid
from server.http.json_outline import JsonOutline, count_placeholders
from server.http.problems import Problem, ProblemKind
from server.quote import quote

MAX_DIMENSIONS = 32
"""Maximum number of dimensions, which every numpy supports. A longer shape is rejected before it is multiplied out."""
MAX_EXTENT = 2**63 - 1
MAX_OTHER_JSON_BYTES = 256 * 1024
"""Maximum size of a request's JSON without the elements of its tensors: errors and answers repeat parts of it."""


@dataclass(frozen=True)
class InferTensor:
    name: str
    datatype: str
    array: NDArray[Any]
    """Array of the tensor's shape, with a dtype of `datatypes.DATATYPES`."""
    binary: bool = False
    """Whether it was received as binary data, or is to be sent so."""


class RequestedOutput(msgspec.Struct, frozen=True):
    name: str
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class InferRequest:
    id: str
    parameters: Mapping[str, Any]
    inputs: tuple[InferTensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    """Requested outputs. Empty for all of them."""

    def wants_binary(self, output: str) -> bool:
        """Return whether an output is binary: its own `binary_data` takes precedence over the request's `binary_data_output`.

        Raises Problem (400) if either is not a boolean."""
        parameters = next((requested.parameters for requested in self.outputs if requested.name == output), None) or {}
        return _boolean(parameters, "binary_data", default=_boolean(self.parameters, "binary_data_output", default=False))


class _InputHeader(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = msgspec.Raw()


class _RequestHeader(msgspec.Struct):
    inputs: list[_InputHeader]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[RequestedOutput] | None = None


_header_decoder = msgspec.json.Decoder(_RequestHeader)


def decode_request(body: bytes, header_length: str | None, *, raw_input: str) -> InferRequest:
    """Read the body of `infer`, decompressed already. Raises Problem (400).

    `header_length`: the header `Inference-Header-Content-Length`, the bytes of JSON in front; without it all is JSON. 0 is Triton's
    "raw binary request": the whole body is the one element of the input `raw_input`, for `curl --data-binary @picture.jpg`.
    """
    json_bytes = _json_bytes(header_length, len(body))
    if json_bytes == 0 and header_length is not None:
        return InferRequest(id="", parameters={}, inputs=(InferTensor(raw_input, "BYTES", datatypes.bytes_array([body]), binary=True),))
    outline, header = _decode_header(body[:json_bytes])
    names = [tensor.name for tensor in header.inputs]
    if len(set(names)) != len(names):
        raise invalid("an input is given twice")
    return InferRequest(
        id=header.id or "",
        parameters=header.parameters or {},
        inputs=tuple(_decode_inputs(outline, header.inputs, memoryview(body)[json_bytes:])),
        outputs=tuple(header.outputs or ()),
    )


def encode_response(
    model: str, version: str, request_id: str, outputs: Sequence[InferTensor], parameters: Mapping[str, Any]
) -> tuple[bytes, int | None]:
    """Return the body, and the bytes of JSON in front of its binary tensors; None if the whole body is JSON."""
    entries: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for tensor in outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.array.shape)}
        if tensor.binary:
            blobs.append(datatypes.to_binary(tensor.array, tensor.datatype))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = datatypes.to_json(tensor.array, tensor.datatype)
        entries.append(entry)
    header: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if request_id:
        header["id"] = request_id
    if parameters:
        header["parameters"] = parameters
    encoded = msgspec.json.encode(header)
    if not blobs:
        return encoded, None
    return b"".join((encoded, *blobs)), len(encoded)


def _boolean(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """Return a boolean parameter. Raises Problem (400)."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise invalid(f"{name}: {quote(value)} must be true or false")
    return value


def _json_bytes(header_length: str | None, body_length: int) -> int:
    if header_length is None:
        return body_length
    if not re.fullmatch(r"[0-9]{1,18}", header_length) or int(header_length) > body_length:
        raise invalid(f"Inference-Header-Content-Length {quote(header_length)} is not a length within the body of {body_length} bytes")
    return int(header_length)


def _decode_header(data: bytes) -> tuple[JsonOutline, _RequestHeader]:
    try:
        outline = JsonOutline.parse(data)
        header = _header_decoder.decode(outline.json)
    except Problem as problem:
        raise replace(problem, detail=f"failed to parse the request JSON: {problem.detail}") from problem
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"failed to parse the request JSON: {error}") from error
    words = len(outline.json) - sum(len(memoryview(tensor.data)) for tensor in header.inputs)
    if words > MAX_OTHER_JSON_BYTES or sum(count_placeholders(tensor.data) for tensor in header.inputs) < len(outline.strings):
        raise Problem(
            ProblemKind.TOO_LARGE, f"the request's JSON has more than {MAX_OTHER_JSON_BYTES} bytes besides the elements of its tensors"
        )
    return outline, header


def _decode_inputs(outline: JsonOutline, headers: Sequence[_InputHeader], binary: memoryview) -> list[InferTensor]:
    tensors, start = [], 0
    for header in headers:
        size = _binary_size(header)
        try:
            tensors.append(_decode_input(outline, header, None if size is None else binary[start : start + size]))
        except Problem as error:
            raise replace(error, detail=f"input '{header.name}': {error.detail}") from error
        start += size or 0
    if start != len(binary):
        raise invalid(f"{len(binary)} bytes follow the request JSON, but binary_data_size adds up to {start}")
    return tensors


def _binary_size(header: _InputHeader) -> int | None:
    size = (header.parameters or {}).get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise invalid(f"input '{header.name}': binary_data_size must be an integer of at least 0")
    return size


def _decode_input(outline: JsonOutline, header: _InputHeader, binary: memoryview | None) -> InferTensor:
    if header.datatype not in datatypes.DATATYPES:
        raise invalid(f"datatype '{header.datatype}' is not one of {', '.join(datatypes.DATATYPES)}")
    if len(header.shape) > MAX_DIMENSIONS:
        raise invalid(f"{len(header.shape)} dimensions; at most {MAX_DIMENSIONS} are possible")
    if any(extent < 0 for extent in header.shape):
        raise invalid(f"the shape {header.shape} has a negative extent")
    if any(extent > MAX_EXTENT for extent in header.shape):
        raise invalid(f"the shape is not possible: an extent of at most {MAX_EXTENT} is")
    data = _data(outline, header.data)
    if (binary is None) == (data is None):
        raise invalid("give its elements either as data or, with binary_data_size, behind the JSON")
    if binary is not None:
        flat = datatypes.from_binary(binary, header.datatype, math.prod(header.shape))
    else:
        flat = datatypes.from_json(data or [], header.datatype, header.shape)
    try:
        array = flat.reshape(header.shape)
    except ValueError as error:  # an extent beyond numpy's integers, next to a 0
        raise invalid(f"the shape {header.shape} is not possible") from error
    return InferTensor(header.name, header.datatype, array, binary=binary is not None)


def _data(outline: JsonOutline, written: msgspec.Raw) -> list[Any] | None:
    """Return the elements of a JSON tensor, long strings as views of their bytes. None if it has none."""
    if not memoryview(written):
        return None
    try:
        data = outline.read(written)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"failed to parse the request JSON: {error}") from error
    if data is not None and not isinstance(data, list):
        raise invalid("failed to parse the request JSON: data must be an array")
    return data
