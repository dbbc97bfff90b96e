"""Options of a request: their names, their defaults and what they may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request

from server.gateway.problems import Kind, Problem
from server.queue.job import PRIORITIES, Priority

NAMES = ("model", "top_k", "merge", "priority")
DEFAULT_TOP_K = 5
MAX_TIMEOUT = 3600.0


@dataclass(frozen=True)
class ClassifyOptions:
    """`top_k` and `merge` are None where the bundle decides."""

    model: str | None = None
    top_k: int | None = None
    merge: str | None = None
    priority: Priority = "normal"


def read_query(request: Request) -> dict[str, str]:
    """The options in the URL. Raises Problem (422) for a name that is none, or is there twice."""
    options: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in options:
            raise Problem(Kind.INVALID_OPTION, "given twice", name)
        check_name(name)
        options[name] = value
    return options


def parse(query: Mapping[str, str], body: Mapping[str, str]) -> ClassifyOptions:
    """Both with names of options only. Raises Problem (422) for one that is given both in the URL and in the body, or not understood."""
    for name in query.keys() & body.keys():
        raise Problem(Kind.INVALID_OPTION, "given both in the URL and in the body", name)
    options = {**query, **body}
    return ClassifyOptions(
        model=options.get("model"),
        top_k=_integer("top_k", options["top_k"]) if "top_k" in options else None,
        merge=options.get("merge"),
        priority=_priority(options.get("priority", "normal")),
    )


def read_timeout(request: Request, default: float) -> float:
    """`X-Request-Timeout` in seconds. Raises Problem (422)."""
    text = request.headers.get("x-request-timeout")
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT:  # false for NaN, too
        raise Problem(Kind.INVALID_OPTION, f"{text!r}: use seconds above 0 and up to {MAX_TIMEOUT:g}", "X-Request-Timeout")
    return seconds


def check_name(name: str) -> None:
    """Raises Problem (422) for a name that is no option."""
    if name not in NAMES:
        raise Problem(Kind.INVALID_OPTION, f"unknown; images are sent as `image`, the options are {', '.join(NAMES)}", name)


def _integer(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Problem(Kind.INVALID_OPTION, f"{text!r}: use a positive integer", name)
    return int(text)


def _priority(text: str) -> Priority:
    for priority in PRIORITIES:
        if text == priority:
            return priority
    raise Problem(Kind.INVALID_OPTION, f"{text!r}: use one of {', '.join(PRIORITIES)}", "priority")
