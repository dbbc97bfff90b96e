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
MOST_HEADER = 10_000
"""Bytes."""
MOST_AXES, LONGEST_AXIS = 8, 2**40
"""Limits of any array that a request could hold; the product of longer ones may have more digits than Python writes."""
UNREADABLE = (ValueError, TypeError, LookupError, EOFError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)
"""Errors of numpy where a header is none: it evaluates a literal, after going through its tokens if that fails."""


@dataclass(frozen=True)
class Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    """Whether the first axis varies fastest."""
    offset: int
    """Where the numbers begin."""

    @property
    def values(self) -> int:
        return int(np.prod([int(side) for side in self.shape], dtype=object))


def read_header(data: bytes, *, kinds: str = "f", wanted: str = "float32") -> Header:
    """kinds: which of numpy's kinds of numbers are welcome, and what to call them. Raises InvalidPart."""
    stream = io.BytesIO(data)
    try:
        version = npy.read_magic(stream)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream, max_header_size=MOST_HEADER)
    except UNREADABLE as error:
        raise InvalidPart(f"no .npy file whose header can be read ({_first_line(error)})") from error
    if dtype.hasobject:
        raise InvalidPart(f"a .npy file of Python objects (pickled): save an array of {wanted} instead")
    if dtype.kind not in kinds:
        raise InvalidPart(f"a .npy file of {dtype}: save an array of {wanted} instead")
    if len(shape) > MOST_AXES or not all(type(side) is int and 0 <= side <= LONGEST_AXIS for side in shape):
        raise InvalidPart("no .npy file whose header can be read (its shape is no array's)")
    header = Header(tuple(shape), dtype, fortran, stream.tell())
    needed, there = header.values * dtype.itemsize, len(data) - header.offset
    if there != needed:
        fault = "truncated" if there < needed else "followed by other data"
        raise InvalidPart(f"the .npy file is {fault}: {there} bytes where {header.shape} of {dtype} has {needed}")
    return header


def read(data: bytes, header: Header) -> NDArray[np.float32]:
    """The numbers as float32, in C order."""
    flat = np.frombuffer(data, header.dtype, offset=header.offset)
    with np.errstate(over="ignore"):
        return np.asarray(flat.reshape(header.shape, order="F" if header.fortran else "C"), np.float32, order="C")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:100]
