"""JSON with large strings, for example images in base64: scanned before it is decoded, and read and written in pieces.

A decoder reads a string in one call, during which nothing else runs: 0.3 s for 40 MB of escapes.
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

PLACEHOLDER_PREFIX = secrets.token_hex(16)
"""Start of the placeholder of a long string; random, so that no client can write it."""
PIECE_BYTES = 128 * 1024
"""Size of the pieces in which a string is decoded."""
MAX_NAME_BYTES = 1024
MAX_ESCAPE_BYTES = 12
"""Size of an escape of two surrogates."""
ESCAPE = re.compile(rb"\\")
BASE64_PIECE = 3 * 128 * 1024
"""Size of pieces, in bytes or characters: a multiple of twelve, so that pieces end where groups do."""


@dataclass(frozen=True)
class JsonOutline:
    """A JSON document without its long strings."""

    json: bytes
    strings: tuple[memoryview, ...]
    """The bytes of the body between their quotes."""
    fields: int
    """Number of names in the object, repeated ones counted each time."""

    @classmethod
    def parse(cls, data: bytes, max_elements: int = json_scan.MAX_ELEMENTS) -> JsonOutline:
        """Scan a document. Raises Problem: 400 if it is nested too deep or not UTF-8, 413 if it has more than `max_elements` elements."""
        try:
            scan = json_scan.check(data, max_elements)
        except json_scan.MalformedJson as error:
            raise Problem(ProblemKind.INVALID_BODY, str(error)) from error
        except json_scan.TooManyElements as error:
            raise Problem(ProblemKind.TOO_LARGE, str(error)) from error
        view, at = memoryview(data), 0
        parts: list[memoryview | bytes] = []
        for index, span in enumerate(scan.long):
            parts += [view[at : span.start], f"{PLACEHOLDER_PREFIX}{index}".encode()]
            at = span.stop
        json = b"".join([*parts, view[at:]]) if scan.long else data
        return cls(json, tuple(view[span] for span in scan.long), scan.fields)

    def read(self, value: msgspec.Raw) -> Any:
        """Decode a value of the outline with its long strings: those without escapes as views of the body, others as str.

        Raises msgspec.DecodeError."""
        decoded = msgspec.json.decode(value)
        return self._fill(decoded) if self.strings else decoded

    def name(self, name: str) -> str:
        """Return a field's name, of a long one the beginning: no known name is long."""
        if not name.startswith(PLACEHOLDER_PREFIX):
            return name
        return str(self.strings[int(name.removeprefix(PLACEHOLDER_PREFIX))][:MAX_NAME_BYTES], "utf-8", "replace")

    def _fill(self, value: Any) -> Any:
        if isinstance(value, str) and value.startswith(PLACEHOLDER_PREFIX):
            return _unescape(self.strings[int(value.removeprefix(PLACEHOLDER_PREFIX))])
        if isinstance(value, dict):
            return {name: self._fill(element) for name, element in value.items()}
        return [self._fill(element) for element in value] if isinstance(value, list) else value


def count_placeholders(value: msgspec.Raw | bytes) -> int:
    """Return the number of long strings that this part of an outline had."""
    return bytes(memoryview(value)).count(PLACEHOLDER_PREFIX.encode())


def _unescape(text: memoryview) -> memoryview | str:
    if ESCAPE.search(text) is None:
        return text
    pieces, at = [], 0
    while at < len(text):
        piece, used = _piece(text, at)
        pieces.append(piece)
        at += used
    return "".join(pieces)


def _piece(text: memoryview, at: int) -> tuple[str, int]:
    """Decode the next characters. Return them with their size, a little below PIECE_BYTES if an escape or a character crosses the end."""
    size = min(PIECE_BYTES, len(text) - at)
    for used in range(size, max(0, size - MAX_ESCAPE_BYTES) if at + size < len(text) else size - 1, -1):
        try:
            return msgspec.json.decode(b'"' + text[at : at + used] + b'"', type=str), used
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            wrong = str(error)
    raise msgspec.DecodeError(wrong)


def to_base64(data: bytes) -> bytes:
    view = memoryview(data)
    return b"".join(binascii.b2a_base64(view[start : start + BASE64_PIECE], newline=False) for start in range(0, len(view), BASE64_PIECE))


def from_base64(text: str | bytes | memoryview) -> bytes:
    """Decode strictly. Raises ValueError with the reason."""
    pieces = []
    for start in range(0, len(text), BASE64_PIECE):
        piece = text[start : start + BASE64_PIECE]
        if start + BASE64_PIECE < len(text) and piece[-1:] in ("=", b"="):
            raise ValueError("Excess data after padding")
        pieces.append(binascii.a2b_base64(piece, strict_mode=True))
    return b"".join(pieces)
