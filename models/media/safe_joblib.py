"""Reader of joblib's files, in which PHALP and LART store tracks: data only, nothing in them is executed.

Such a file is a pickle in which the values of each array follow its description. Of all names that a pickle may contain only the four below
are accepted, and none stands for the real object: arrays are made here, from their description and bytes.
"""

from __future__ import annotations

import bz2
import io
import lzma
import pickle
import zlib
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

MAX_UNPACKED_BYTES = 4 << 30
PLAIN_DTYPE_KINDS = frozenset("biufcSU")
"""Kinds of array elements: numbers, booleans and text, no objects."""


class Unpacker(Protocol):
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...
    @property
    def eof(self) -> bool: ...


UNPACKERS: Mapping[bytes, Callable[[], Unpacker]] = {
    b"\x78": zlib.decompressobj,
    b"\x1f\x8b": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),  # gzip
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ": lzma.LZMADecompressor,
    b"\x5d\x00": lzma.LZMADecompressor,
}
"""Unpackers by the first bytes of a file; no pickle begins with them. Trackers write the first, `joblib.dump` the others by suffix."""


class UnsafeFile(ValueError):
    """Error of a file that is not joblib's, is damaged, or has more than data; the message says which."""


def read_joblib(path: Path, *, max_bytes: int = MAX_UNPACKED_BYTES) -> Any:
    """Read a file of `joblib.dump` with arrays, uncompressed or packed by a codec of Python's standard library. Raises UnsafeFile."""
    try:
        return _SafeUnpickler(io.BytesIO(_unpack(path.read_bytes(), max_bytes))).load()
    except UnsafeFile as error:
        raise UnsafeFile(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle makes its reader raise almost anything
        raise UnsafeFile(f"{path}: damaged, or no joblib file ({type(error).__name__})") from error


def _unpack(data: bytes, max_bytes: int) -> bytes:
    start = next((start for start in UNPACKERS if data.startswith(start)), None)
    if start is None:
        return data
    unpacker = UNPACKERS[start]()
    try:
        data = unpacker.decompress(data, max_bytes)
    except (zlib.error, OSError, EOFError, lzma.LZMAError) as error:
        raise UnsafeFile(f"damaged ({error})") from error
    if not unpacker.eof:
        raise UnsafeFile(f"truncated, or unpacks to more than {max_bytes} bytes")
    return data


class _ArrayClass:
    """Replacement of numpy.ndarray, which descriptions only mention."""


class _Dtype:
    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def real(self) -> np.dtype[Any]:
        dtype = np.dtype(self.code)
        dtype = dtype.newbyteorder(">") if self.order == ">" else dtype
        if dtype.kind not in PLAIN_DTYPE_KINDS:
            raise UnsafeFile(f"refused, since it holds an array of {dtype}, not of numbers or text")
        return dtype


class _Description:
    """Replacement of joblib.numpy_pickle.NumpyArrayWrapper."""

    shape: tuple[int, ...]
    order: str
    dtype: _Dtype
    numpy_array_alignment_bytes: int | None = None

    def read(self, stream: io.BytesIO) -> np.ndarray[Any, Any]:
        """Read the array whose values come next, of any shape."""
        if self.numpy_array_alignment_bytes is not None:
            stream.read(stream.read(1)[0])  # padding
        dtype = self.dtype.real()
        size = prod(self.shape) * dtype.itemsize
        values = stream.read(size)
        if len(values) != size:
            raise UnsafeFile("truncated")
        return np.frombuffer(values, dtype).reshape(self.shape, order="F" if self.order == "F" else "C").copy()


def _scalar(dtype: _Dtype, value: bytes) -> Any:
    return np.frombuffer(value, dtype.real())[0]


STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _Dtype,
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _Description,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}


class _SafeUnpickler(pickle._Unpickler):  # in Python: the one in C reads ahead, past the description of an array
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.stream = stream

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise UnsafeFile(f"refused, since it names {module}.{name} and may hold only arrays and plain values")
        return STAND_INS[module, name]

    def build(self) -> None:
        pickle._Unpickler.dispatch[pickle.BUILD[0]](self)  # type: ignore[arg-type]
        if isinstance(self.stack[-1], _Description):
            self.stack[-1] = self.stack[-1].read(self.stream)

    dispatch[pickle.BUILD[0]] = build
