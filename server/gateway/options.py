"""Options in the URL, and the deadline in its header."""

from __future__ import annotations

import math
from functools import lru_cache
from urllib.parse import parse_qsl

from starlette.requests import Request

from server.gateway.surface import CommonOptions, Surface
from server.http.problems import Kind, Problem
from server.http.requests import header
from server.tasks.options import Options, quoted

MAX_TIMEOUT = 3600.0
MIN_TIMEOUT = 0.001


@lru_cache(maxsize=256)
def _pairs(query: bytes) -> list[tuple[str, str]]:
    """Clients repeat their queries."""
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True)


def of_query(surface: Surface, query: bytes) -> tuple[CommonOptions, Options]:
    """The options of a request that has none in its body. Raises Problem (422)."""
    return surface.read_options(_named(surface, query), {})


def read_query(request: Request, surface: Surface) -> dict[str, list[object]]:
    """The options in the URL. Raises Problem (422) for a name that is none."""
    return _named(surface, request.scope["query_string"])


def _named(surface: Surface, query: bytes) -> dict[str, list[object]]:
    options: dict[str, list[object]] = {}
    for name, value in _pairs(query):
        if name not in surface.options:
            raise surface.unknown(name)
        options.setdefault(name, []).append(value)
    return options


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
