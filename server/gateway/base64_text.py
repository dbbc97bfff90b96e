"""base64 in pieces: in one, a large picture holds up every other thread."""

from __future__ import annotations

import binascii

PIECE = 3 * 128 * 1024
"""Bytes or characters; a multiple of twelve, so that pieces end where groups do."""


def encode(data: bytes) -> bytes:
    view = memoryview(data)
    return b"".join(binascii.b2a_base64(view[start : start + PIECE], newline=False) for start in range(0, len(view), PIECE))


def decode(text: str | bytes | memoryview) -> bytes:
    """Raises ValueError that says what is wrong."""
    pieces = []
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE]
        if start + PIECE < len(text) and piece[-1:] in ("=", b"="):
            raise ValueError("Excess data after padding")
        pieces.append(binascii.a2b_base64(piece, strict_mode=True))
    return b"".join(pieces)
