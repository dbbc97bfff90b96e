"""Options in the URL, and the deadline in its header."""

from __future__ import annotations

import math
from functools import lru_cache
from urllib.parse import parse_qsl

from starlette.requests import Request

from server.gateway.problems import Kind, Problem
from server.gateway.surface import Surface

MAX_TIMEOUT = 3600.0


@lru_cache(maxsize=256)
def _pairs(query: bytes) -> list[tuple[str, str]]:
    """Clients repeat their queries."""
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True)


def read_query(request: Request, surface: Surface) -> dict[str, list[object]]:
    """The options in the URL. Raises Problem (422) for a name that is none."""
    options: dict[str, list[object]] = {}
    for name, value in _pairs(request.scope["query_string"]):
        if name not in surface.options:
            raise surface.unknown(name)
        options.setdefault(name, []).append(value)
    return options


def read_timeout(request: Request, default: float, most: float = MAX_TIMEOUT) -> float:
    """`X-Request-Timeout` in seconds. Raises Problem (422)."""
    text = request.headers.get("x-request-timeout")
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= most:  # false for NaN, too
        raise Problem(Kind.INVALID_OPTION, f"{text!r}: use seconds above 0 and up to {most:g}", "X-Request-Timeout")
    return seconds
