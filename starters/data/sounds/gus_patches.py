"""Gravis Ultrasound patches (`.pat`): recordings of one instrument with root frequencies and loops.

Envelopes are ignored: in the patches read here they only let a note decay after its end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

_MAGIC = b"GF1PATCH1"
_HEADER, _INSTRUMENT, _LAYER = 129, 63, 47
"""Sizes in bytes; byte 41 from the end of a layer is the number of samples."""
_SAMPLE = struct.Struct("<7sBIIIHIIIhB6B6B6BB40x")
"""Name, fractions of the loop, size, start and end of the loop in bytes, rate, lowest, highest and root frequency in mHz, …, modes."""
_WIDE, _UNSIGNED, _LOOPED, _BACKWARDS = 1, 2, 4, 16
"""Bits of the modes: 16-bit values; unsigned; looped; played backwards."""
_MODES = -1


@dataclass(frozen=True)
class PatchSample:
    key: float
    """Key of the pitch; middle C is 60."""
    wave: NDArray[np.float32]
    """(samples,), from -1 to 1."""
    rate: int
    loop: tuple[int, int] | None
    """Start and end, in samples."""


def read_patch(file: Path) -> list[PatchSample]:
    """Read the samples of the first layer. Raises DataError."""
    content = file.read_bytes()
    try:
        if not content.startswith(_MAGIC):
            raise ValueError("it has no header of a patch")
        at = _HEADER + _INSTRUMENT + _LAYER
        found = []
        for _ in range(content[at - 41]):
            sample, at = _sample(content, at)
            found.append(sample)
    except (ValueError, IndexError, struct.error) as error:
        raise DataError(f"{file}: cannot be read as a patch ({error})") from error
    if not found:
        raise DataError(f"{file}: has no samples")
    return found


def _sample(content: bytes, at: int) -> tuple[PatchSample, int]:
    """Read a sample, and return it with the offset of the next one. Raises ValueError and struct.error."""
    fields = _SAMPLE.unpack_from(content, at)
    size, start, end, rate = fields[2:6]
    root, modes = fields[8], fields[_MODES]
    data = content[at + _SAMPLE.size : at + _SAMPLE.size + size]
    if len(data) < size or not size or not rate or not root:
        raise ValueError("it ends early, or a sample has no length, rate or root")
    if modes & _BACKWARDS:
        raise ValueError("a sample is played backwards, which is not supported")
    width = 2 if modes & _WIDE else 1
    values = np.frombuffer(data[: size // width * width], f"<{'u' if modes & _UNSIGNED else 'i'}{width}").astype(np.float32)
    wave = values / np.float32(2 ** (8 * width - 1)) - np.float32(bool(modes & _UNSIGNED))
    start, end = start // width, min(end // width, len(wave) - 1)
    loop = (start, end) if modes & _LOOPED and start < end else None
    key = 69 + 12 * np.log2(root / 440_000)
    return PatchSample(float(key), wave, rate, loop), at + _SAMPLE.size + size
