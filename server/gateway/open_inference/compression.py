"""gzip and deflate of `infer`, both ways. "deflate" is a zlib stream (RFC 1950), as HTTP and Triton's clients mean it."""

from __future__ import annotations

import zlib
from typing import Literal

from server.gateway.open_inference.errors import invalid
from server.gateway.problems import Kind, Problem

Encoding = Literal["gzip", "deflate"]

_WINDOW_BITS: dict[Encoding, int] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def decompress(body: bytes, content_encoding: str, limit: int) -> bytes:
    """The body without its `Content-Encoding`.

    Inflates at most `limit` bytes. Raises Problem: 501 for another encoding, 400 for a damaged stream, 413 above the limit.
    """
    if content_encoding.strip().lower() in ("", "identity"):
        return body
    encoding = _known(content_encoding)
    if encoding is None:
        raise Problem(Kind.UNSUPPORTED_ENCODING, f"Content-Encoding {content_encoding!r} is not supported")
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        inflated = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise invalid(f"the body is no valid {encoding} stream: {error}") from error
    if len(inflated) > limit:
        raise Problem(Kind.TOO_LARGE, f"the decompressed body is above the limit of {limit} bytes (OPSIN_MAX_BODY_BYTES)")
    if not stream.eof:
        raise invalid(f"the body ends in the middle of its {encoding} stream")
    if stream.unused_data:
        raise invalid(f"{len(stream.unused_data)} bytes follow the end of the {encoding} stream")
    return inflated


def wanted(accept_encoding: str | None) -> Encoding | None:
    """How the client wants its reply compressed: only an `Accept-Encoding` that names one encoding is a wish.

    Triton's asyncio client sends `gzip, deflate, br` with every call, whether it can undo them or not.
    """
    return _known(accept_encoding or "")


def compress(body: bytes, encoding: Encoding) -> bytes:
    """Level 1: float tensors hardly shrink at any level."""
    stream = zlib.compressobj(level=1, wbits=_WINDOW_BITS[encoding])
    return stream.compress(body) + stream.flush()


def _known(name: str) -> Encoding | None:
    match name.strip().lower():
        case "gzip":
            return "gzip"
        case "deflate":
            return "deflate"
        case _:
            return None
