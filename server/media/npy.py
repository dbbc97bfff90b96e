"""`.npy` files of numbers: the header is read and checked before anything is allocated, and nothing is ever unpickled."""

from __future__ import annotations

import io
import tokenize
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from server.media.limits import InvalidPart

MAGIC = npy.MAGIC_PREFIX
MAX_HEADER_BYTES = 10_000
MAX_AXES, MAX_AXIS_LENGTH = 8, 2**40
"""Limits of any array that a request could hold; the product of longer axes may have more digits than Python writes."""
UNREADABLE = (ValueError, TypeError, LookupError, EOFError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)
"""Errors of numpy for an invalid header: it evaluates a literal, after going through its tokens if that fails."""


@dataclass(frozen=True)
class Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    """Whether the first axis varies fastest."""
    offset: int
    """Start of the numbers in the file."""

    @property
    def values(self) -> int:
        return int(np.prod([int(side) for side in self.shape], dtype=object))


def read_header(data: bytes, *, kinds: str = "f", expected: str = "float32") -> Header:
    """Read and check a header. kinds: numpy's kinds of numbers that are accepted; expected: their name in errors. Raises InvalidPart."""
    stream = io.BytesIO(data)
    try:
        version = npy.read_magic(stream)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream, max_header_size=MAX_HEADER_BYTES)
    except UNREADABLE as error:
        raise InvalidPart(f"not a .npy file whose header can be read ({_first_line(error)})") from error
    if dtype.hasobject:
        raise InvalidPart(f"a .npy file of Python objects (pickled): save an array of {expected} instead")
    if dtype.kind not in kinds:
        raise InvalidPart(f"a .npy file of {dtype}: save an array of {expected} instead")
    if len(shape) > MAX_AXES or not all(type(side) is int and 0 <= side <= MAX_AXIS_LENGTH for side in shape):
        raise InvalidPart("not a .npy file whose header can be read (its shape is not that of an array)")
    header = Header(tuple(shape), dtype, fortran, stream.tell())
    needed, available = header.values * dtype.itemsize, len(data) - header.offset
    if available != needed:
        fault = "truncated" if available < needed else "followed by other data"
        raise InvalidPart(f"the .npy file is {fault}: {available} bytes, but {header.shape} of {dtype} has {needed}")
    return header


def read(data: bytes, header: Header) -> NDArray[np.float32]:
    """Return the numbers as float32, in C order."""
    flat = np.frombuffer(data, header.dtype, offset=header.offset)
    with np.errstate(over="ignore"):
        return np.asarray(flat.reshape(header.shape, order="F" if header.fortran else "C"), np.float32, order="C")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:100]
