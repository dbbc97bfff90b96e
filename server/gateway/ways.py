"""How a request wants its answer: at once, as a stream of events, or later."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request

from server.gateway import negotiation
from server.http import event_stream
from server.http.problems import Kind, Problem
from server.http.requests import header

MAX_KEY = 256
PREFERENCE = "respond-async"


def is_asynchronous(request: Request) -> bool:
    """`Prefer: respond-async` (RFC 7240), whatever else is preferred beside it."""
    if header(request, b"prefer") is None:
        return False
    preferred = request.headers.getlist("prefer")
    return any(one.partition(";")[0].strip().lower() == PREFERENCE for line in preferred for one in line.split(","))


def wants_events(request: Request, media_types: Sequence[str]) -> bool:
    """Whether `Accept` puts a stream of events before every other answer."""
    accept = header(request, b"accept")
    if accept is None or event_stream.MEDIA_TYPE not in accept.lower():
        return False
    return negotiation.choose(accept, (*media_types, event_stream.MEDIA_TYPE)) == event_stream.MEDIA_TYPE


def idempotency_key(request: Request) -> str:
    """Empty: there is none. Raises Problem (422)."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return ""
    if len(keys) > 1:
        raise Problem(Kind.INVALID_OPTION, f"given {len(keys)} times; send one", "Idempotency-Key")
    (key,) = keys
    if not 0 < len(key) <= MAX_KEY:
        raise Problem(Kind.INVALID_OPTION, f"use 1 to {MAX_KEY} characters", "Idempotency-Key")
    return key
