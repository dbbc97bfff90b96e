"""JSON whose long strings, a picture in base64 for example, are taken out before it is decoded.

A decoder takes a string in one go, in which nothing else runs: 0.3 s for 40 MB of escapes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

MARK = secrets.token_hex(16)
"""Begins what stands in the place of a long string; nobody else can write it."""
PIECE = 128 * 1024
"""Bytes of a string that are decoded at a time."""
NAME = 1024
LONGEST_ESCAPE = 12
"""Bytes: two surrogates."""
ESCAPE = re.compile(rb"\\")


@dataclass(frozen=True)
class Outline:
    """JSON without its long strings."""

    json: bytes
    strings: tuple[memoryview, ...]
    """What stood between their quotes, of the body."""

    @classmethod
    def of(cls, data: bytes, long: Sequence[slice]) -> Outline:
        """long: where they are (`json_scan.check`)."""
        view, at = memoryview(data), 0
        parts: list[memoryview | bytes] = []
        for index, span in enumerate(long):
            parts += [view[at : span.start], f"{MARK}{index}".encode()]
            at = span.stop
        return cls(b"".join([*parts, view[at:]]) if long else data, tuple(view[span] for span in long))

    def read(self, value: msgspec.Raw) -> Any:
        """A value of the outline, with its long strings: those without escapes as views of the body, others as str.

        Raises msgspec.DecodeError."""
        decoded = msgspec.json.decode(value)
        return self._filled(decoded) if self.strings else decoded

    def name(self, name: str) -> str:
        """A field's name; of a long one, which is none that anybody knows, the beginning."""
        return str(self.strings[int(name.removeprefix(MARK))][:NAME], "utf-8", "replace") if name.startswith(MARK) else name

    def _filled(self, value: Any) -> Any:
        if isinstance(value, str) and value.startswith(MARK):
            return _unescaped(self.strings[int(value.removeprefix(MARK))])
        if isinstance(value, dict):
            return {name: self._filled(element) for name, element in value.items()}
        return [self._filled(element) for element in value] if isinstance(value, list) else value


def marks(value: msgspec.Raw | bytes) -> int:
    """Number of long strings that were taken out of this part of an outline."""
    return bytes(memoryview(value)).count(MARK.encode())


def _unescaped(text: memoryview) -> memoryview | str:
    if ESCAPE.search(text) is None:
        return text
    pieces, at = [], 0
    while at < len(text):
        piece, used = _piece(text, at)
        pieces.append(piece)
        at += used
    return "".join(pieces)


def _piece(text: memoryview, at: int) -> tuple[str, int]:
    """What is decoded next, and the bytes that it takes: a few less than PIECE where an escape or a character lies across its end."""
    most = min(PIECE, len(text) - at)
    for used in range(most, max(0, most - LONGEST_ESCAPE) if at + most < len(text) else most - 1, -1):
        try:
            return msgspec.json.decode(b'"' + text[at : at + used] + b'"', type=str), used
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            wrong = str(error)
    raise msgspec.DecodeError(wrong)
