"""The fourteen datatypes of the protocol, between bytes, JSON values and numpy.

Binary tensors are little-endian and row-major, without padding. An element of BYTES is its length as uint32 followed by the bytes.
BF16, which numpy lacks, is held as float32 and exists in binary form only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.gateway.open_inference.errors import invalid
from server.http.problems import Problem, ProblemKind
from server.json_scan import MAX_ELEMENTS

DATATYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<f4"),
    "BYTES": np.dtype(object),
}
"""Datatype → the dtype of its numpy array; BYTES are object arrays of `bytes`."""

_JSON_TYPES: Mapping[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "u": frozenset({int}),
    "i": frozenset({int}),
    "f": frozenset({int, float}),
    "O": frozenset({str, memoryview}),
}
_JSON_NAMES: Mapping[str, str] = {"b": "booleans", "u": "integers", "i": "integers", "f": "numbers", "O": "strings"}

_LENGTH = struct.Struct("<I")


def from_binary(data: memoryview, datatype: str, count: int) -> NDArray[Any]:
    """Read the `count` elements of a binary tensor, shape (count,). Raises Problem (400) if the bytes do not fit."""
    if datatype == "BYTES":
        return bytes_array(_split_elements(data, count))
    itemsize = 2 if datatype == "BF16" else DATATYPES[datatype].itemsize
    if len(data) != count * itemsize:
        raise invalid(f"{len(data)} bytes of binary data, but {count} elements of {datatype} need {count * itemsize}")
    if datatype == "BF16":
        bits: NDArray[np.uint32] = np.left_shift(np.frombuffer(data, "<u2"), 16, dtype=np.uint32)
        return bits.view(np.float32)
    if datatype == "BOOL":
        return np.frombuffer(data, np.uint8).astype(np.bool_)
    return np.frombuffer(data, DATATYPES[datatype])


def to_binary(array: NDArray[Any], datatype: str) -> bytes:
    """Write the array's elements, row by row, in the protocol's binary form."""
    if datatype == "BYTES":
        return b"".join(_LENGTH.pack(len(element)) + element for element in array.ravel())
    if datatype == "BF16":
        return _round_to_bf16(array).tobytes()
    return array.astype(DATATYPES[datatype], copy=False).tobytes()


def from_json(values: Sequence[Any], datatype: str, shape: Sequence[int]) -> NDArray[Any]:
    """Read the elements of a JSON tensor, nested or flat; shape (count,). Strings of BYTES become UTF-8.

    The protocol only prescribes their number. Raises Problem (400) if that differs or a value is not of the datatype.
    """
    if datatype == "BF16":
        raise invalid("BF16 has no JSON form: send it as binary data")
    dtype, count = DATATYPES[datatype], math.prod(shape)
    flat = _flatten(values)
    if len(flat) != count:
        raise invalid(f"{len(flat)} elements of data, but the shape {list(shape)} needs {count}")
    if not set(map(type, flat)) <= _JSON_TYPES[dtype.kind]:
        raise invalid(f"data of {datatype} must be {_JSON_NAMES[dtype.kind]}")
    if datatype == "BYTES":
        return bytes_array([text.encode() if isinstance(text, str) else bytes(text) for text in flat])
    try:
        with np.errstate(over="raise"):
            return np.array(flat, dtype)
    except (OverflowError, FloatingPointError) as error:
        raise invalid(f"data holds a value outside the range of {datatype}") from error


def to_json(array: NDArray[Any], datatype: str) -> list[Any]:
    """Return the array's elements as a flat list of JSON values. Raises Problem (400) if JSON cannot hold them."""
    if datatype == "BF16":
        raise invalid("BF16 has no JSON form: request the output with binary_data")
    if datatype != "BYTES":
        values: list[Any] = array.ravel().tolist()
        return values
    try:
        return [element.decode() for element in array.ravel()]
    except UnicodeDecodeError as error:
        raise invalid("BYTES that are not UTF-8 have no JSON form: request the output with binary_data") from error


def _split_elements(data: memoryview, count: int) -> list[bytes]:
    if count * _LENGTH.size > len(data):
        raise invalid(f"{len(data)} bytes of binary data cannot hold {count} elements of BYTES")
    if count > MAX_ELEMENTS:
        raise Problem(ProblemKind.TOO_LARGE, f"more than {MAX_ELEMENTS} elements of BYTES")
    elements, start = [], 0
    for index in range(count):
        if start + _LENGTH.size > len(data):
            raise invalid(f"binary data ends before the length of element {index} of {count}")
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if length > len(data) - start:
            raise invalid(f"element {index} claims {length} bytes; {len(data) - start} are left of the binary data")
        elements.append(bytes(data[start : start + length]))
        start += length
    if start != len(data):
        raise invalid(f"{len(data) - start} bytes of binary data are left over after {count} elements of BYTES")
    return elements


def _flatten(values: Sequence[Any]) -> Sequence[Any]:
    while any(type(value) is list for value in values):
        if not all(type(value) is list for value in values):
            raise invalid("data mixes lists and values at one level")
        values = [element for row in values for element in row]
    return values


def bytes_array(elements: Sequence[bytes]) -> NDArray[Any]:
    """Return the elements of a tensor of BYTES, shape (count,)."""
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def _round_to_bf16(array: NDArray[Any]) -> NDArray[np.uint16]:
    """Round float32 to the upper 16 bits, to nearest even; a NaN keeps its sign and stays a NaN."""
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return np.where(np.isnan(array), (bits >> 16).astype("<u2") | 0x40, rounded).astype("<u2")
