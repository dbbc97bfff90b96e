"""How a request wants its answer: as which media type, at once, as a stream of events or later, and until when."""

from __future__ import annotations

import math
from collections.abc import Sequence

from starlette.requests import Request

from server.http.event_stream import MEDIA_TYPE as EVENTS
from server.http.problems import Kind, Problem
from server.http.requests import header
from server.tasks.options import quoted

MAX_TIMEOUT = 3600.0
MIN_TIMEOUT = 0.001
MAX_KEY = 256
PREFERENCE = "respond-async"


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """The offered type that `Accept` (RFC 9110, 12.5.1) gives the highest weight, of equal ones the first.

    Raises Problem (406) where none is accepted."""
    elements = [element for element in (accept or "").lower().split(",") if element.strip()]
    if not elements:
        return offered[0]
    ranges = _ranges(elements)
    weights = {media_type: _weight(media_type, ranges) for media_type in offered}
    best = max(offered, key=lambda media_type: weights[media_type])
    if weights[best] <= 0:
        raise Problem(Kind.NOT_ACCEPTABLE, f"{quoted(accept)}: the answer is offered as {', '.join(offered)}", "Accept")
    return best


def is_asynchronous(request: Request) -> bool:
    """`Prefer: respond-async` (RFC 7240), whatever else is preferred beside it."""
    lines = (value.decode("latin-1") for name, value in request.scope["headers"] if name == b"prefer")
    return any(one.partition(";")[0].strip().lower() == PREFERENCE for line in lines for one in line.split(","))


def wants_events(request: Request, media_types: Sequence[str]) -> bool:
    """Whether `Accept` puts a stream of events before every other answer."""
    accept = header(request, b"accept")
    if accept is None or EVENTS not in accept.lower():
        return False
    return choose(accept, (*media_types, EVENTS)) == EVENTS


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


def read_timeout(request: Request, default: float, most: float = MAX_TIMEOUT) -> float:
    """`X-Request-Timeout` in seconds. Raises Problem (422)."""
    text = header(request, b"x-request-timeout")
    if text is None:
        return default
    try:
        seconds = math.nan if "_" in text else float(text)  # Python would read 1_0 as 10
    except ValueError:
        seconds = math.nan
    if not MIN_TIMEOUT <= seconds <= most:  # false for NaN, too
        raise Problem(Kind.INVALID_OPTION, f"{quoted(text)}: use seconds from {MIN_TIMEOUT:g} to {most:g}", "X-Request-Timeout")
    return seconds


def _ranges(elements: Sequence[str]) -> dict[str, float]:
    """Media range → weight. An element whose weight is no number is ignored."""
    ranges = {}
    for element in elements:
        media_range, *parameters = (text.strip() for text in element.split(";"))
        try:
            weight = float(next((text[2:] for text in parameters if text.startswith("q=")), "1"))
        except ValueError:
            weight = math.nan
        if math.isfinite(weight):
            ranges[media_range] = min(1.0, max(0.0, weight))
    return ranges


def _weight(media_type: str, ranges: dict[str, float]) -> float:
    """By the most specific range that matches."""
    for media_range in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if media_range in ranges:
            return ranges[media_range]
    return 0.0
