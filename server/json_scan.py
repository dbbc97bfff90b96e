"""A scan of JSON before it is decoded: a decoder makes hundreds of bytes of objects from three bytes such as `[],`.

It builds no object per element, and every step works on a chunk at a time, so that in a thread it blocks no other.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

import numpy as np

MAX_DEPTH = 64
MAX_ELEMENTS = 200_000
"""Maximum number of values and of names of fields: up to twenty megabytes once decoded."""
CHUNK = 256 * 1024
LONG = 16 * 1024
"""Minimum length in bytes of a string that is long."""
MAX_STRUCTURE_BYTES = 16 * 1024 * 1024
"""Maximum size without long strings: a decoder passes over it in one go, in which nothing else runs."""

STRUCTURE = b'"[]{},:'
OTHERS = bytes(byte for byte in range(256) if byte not in STRUCTURE)
QUOTE, COLON = ord('"'), ord(":")
# what each byte does outside of strings
STEP = np.zeros(256, np.int32)
STEP[list(b"[{")], STEP[list(b"]}")] = 1, -1
COUNTS = np.zeros(256, np.bool_)
COUNTS[list(b"[{,:")] = True


class MalformedJson(ValueError):
    """JSON that is nested deeper than MAX_DEPTH, or not UTF-8."""


class TooManyElements(ValueError):
    """More JSON than is decoded at once."""


@dataclass(frozen=True)
class Scan:
    """Result of a scan."""

    long: list[slice]
    """Positions of the strings of more than LONG bytes, without their quotes."""
    fields: int
    """Number of names in the outermost object, with repetitions."""


def check(data: bytes, max_elements: int = MAX_ELEMENTS) -> Scan:
    """Scan JSON. Raises MalformedJson and TooManyElements.

    Accepted data need not be JSON; a decoder stops at its first error, and up to there both see the same.
    """
    text = codecs.getincrementaldecoder("utf-8")()
    depth = elements = fields = opened = 0
    long: list[slice] = []
    inside = False
    """Whether a string, which `opened` there, continues from the chunk before."""
    escape = b""
    """The first half of an escape that the chunk before ended with."""
    for start in range(0, len(data), CHUNK):
        chunk = data[start : start + CHUNK]
        _check_text(text, chunk, final=start + CHUNK >= len(data))
        offset = start - len(escape)
        chunk, escape = _without_escapes(escape + chunk)
        quotes = np.flatnonzero(np.frombuffer(chunk, np.uint8) == QUOTE) + offset
        ends = np.concatenate(([opened], quotes)) if inside else quotes
        ends = ends[: len(ends) // 2 * 2].reshape(-1, 2)  # where each string that ends here opens and closes
        long += [slice(int(start) + 1, int(end)) for start, end in ends[ends[:, 1] - ends[:, 0] > LONG]]
        structure = np.frombuffer(chunk.translate(None, OTHERS), np.uint8)
        if not len(structure):
            continue
        quoted = np.bitwise_xor.accumulate(structure == QUOTE) ^ inside
        inside = bool(quoted[-1])
        opened = int(quotes[-1]) if len(quotes) else opened
        outside = structure[~quoted]
        depths = depth + np.cumsum(STEP[outside])
        if len(depths):
            depth = int(depths[-1])
            if depths.max() > MAX_DEPTH:
                raise MalformedJson(f"the JSON is nested deeper than {MAX_DEPTH} levels")
        fields += int(np.count_nonzero((outside == COLON) & (depths == 1)))
        elements += int(np.count_nonzero(COUNTS[outside]))
        if elements > max_elements:
            raise TooManyElements(f"the JSON has more than {max_elements} elements")
    if len(data) - sum(string.stop - string.start for string in long) > MAX_STRUCTURE_BYTES:
        raise TooManyElements(f"the JSON has more than {MAX_STRUCTURE_BYTES} bytes outside of strings of more than {LONG} bytes")
    return Scan(long, fields)


def _check_text(text: codecs.IncrementalDecoder, chunk: bytes, *, final: bool) -> None:
    try:
        text.decode(chunk, final)
    except UnicodeDecodeError as error:
        raise MalformedJson(f"the JSON is not UTF-8: {error.reason}") from error


def _without_escapes(chunk: bytes) -> tuple[bytes, bytes]:
    r"""Replace `\\` and `\"` by blanks. Return the chunk, and its last byte if that begins an escape that continues in the next chunk."""
    if b"\\" not in chunk:
        return chunk, b""
    chunk = chunk.replace(rb"\\", b"  ").replace(rb"\"", b"  ")
    return (chunk[:-1], b"\\") if chunk.endswith(b"\\") else (chunk, b"")
