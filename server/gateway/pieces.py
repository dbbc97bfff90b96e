"""Bodies that are sent in pieces: what a client has not read yet is not copied for its connection."""

from __future__ import annotations

from starlette.types import Send

PIECE = 256 * 1024
"""Bytes."""


async def send_pieces(send: Send, body: bytes, *, last: bool) -> None:
    """Returns when the connection has taken all but a piece. last: nothing follows."""
    start = 0
    while len(body) - start > PIECE:
        await send({"type": "http.response.body", "body": body[start : start + PIECE], "more_body": True})
        start += PIECE
    rest = body[start:]
    if not last or start:
        await send({"type": "http.response.body", "body": rest, "more_body": True})
        rest = b""
    if last:
        await send({"type": "http.response.body", "body": rest, "more_body": False})
