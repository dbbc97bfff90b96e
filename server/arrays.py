"""Arrays in the messages that processes exchange."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


class Array(msgspec.Struct, frozen=True):
    """A numpy array on the wire: C order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @staticmethod
    def from_numpy(array: NDArray[Any]) -> Array:
        plain = np.asarray(array)
        return Array(plain.dtype.str, plain.shape, plain.tobytes())

    def to_numpy(self) -> NDArray[Any]:
        """Return a read-only view of the message's bytes."""
        return np.frombuffer(self.data, dtype=np.dtype(self.dtype)).reshape(self.shape)


def to_numpy(arrays: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    return {name: array.to_numpy() for name, array in arrays.items()}


def from_numpy(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Array]:
    return {name: Array.from_numpy(array) for name, array in arrays.items()}
