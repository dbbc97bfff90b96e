"""JSON with large strings, an image in base64 for example: looked over before it is decoded, and read and written in pieces.

A decoder takes a string in one go, in which nothing else runs: 0.3 s for 40 MB of escapes.
"""

from __future__ import annotations

import binascii
import re
import secrets
from dataclasses import dataclass
from typing import Any

import msgspec

from server import json_scan
from server.http.problems import Problem, ProblemKind

MARK = secrets.token_hex(16)
"""Begins what stands in the place of a long string; nobody else can write it."""
PIECE = 128 * 1024
"""Bytes of a string that are decoded at a time."""
NAME = 1024
LONGEST_ESCAPE = 12
"""Bytes: two surrogates."""
ESCAPE = re.compile(rb"\\")
BASE64_PIECE = 3 * 128 * 1024
"""Bytes or characters; a multiple of twelve, so that pieces end where groups do."""


@dataclass(frozen=True)
class Outline:
    """JSON without its long strings."""

    json: bytes
    strings: tuple[memoryview, ...]
    """The bytes of the body between their quotes."""
    fields: int
    """Names in the object that it is, repeated ones counted each time."""

    @classmethod
    def of(cls, data: bytes, max_elements: int = json_scan.MAX_ELEMENTS) -> Outline:
        """Raises Problem: 400 where it is nested too deep or no UTF-8, 413 where it has more than `max_elements` elements."""
        try:
            scan = json_scan.check(data, max_elements)
        except json_scan.MalformedJson as error:
            raise Problem(ProblemKind.INVALID_BODY, str(error)) from error
        except json_scan.TooManyElements as error:
            raise Problem(ProblemKind.TOO_LARGE, str(error)) from error
        view, at = memoryview(data), 0
        parts: list[memoryview | bytes] = []
        for index, span in enumerate(scan.long):
            parts += [view[at : span.start], f"{MARK}{index}".encode()]
            at = span.stop
        json = b"".join([*parts, view[at:]]) if scan.long else data
        return cls(json, tuple(view[span] for span in scan.long), scan.fields)

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
    """The next characters, and the bytes that they take: a few less than PIECE where an escape or a character lies across its end."""
    most = min(PIECE, len(text) - at)
    for used in range(most, max(0, most - LONGEST_ESCAPE) if at + most < len(text) else most - 1, -1):
        try:
            return msgspec.json.decode(b'"' + text[at : at + used] + b'"', type=str), used
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            wrong = str(error)
    raise msgspec.DecodeError(wrong)


def to_base64(data: bytes) -> bytes:
    view = memoryview(data)
    return b"".join(binascii.b2a_base64(view[start : start + BASE64_PIECE], newline=False) for start in range(0, len(view), BASE64_PIECE))


def from_base64(text: str | bytes | memoryview) -> bytes:
    """Raises ValueError that says what is wrong."""
    pieces = []
    for start in range(0, len(text), BASE64_PIECE):
        piece = text[start : start + BASE64_PIECE]
        if start + BASE64_PIECE < len(text) and piece[-1:] in ("=", b"="):
            raise ValueError("Excess data after padding")
        pieces.append(binascii.a2b_base64(piece, strict_mode=True))
    return b"".join(pieces)
