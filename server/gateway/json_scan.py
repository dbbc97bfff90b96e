"""Bodies of JSON are looked over before they are decoded (`server.media.json_scan`)."""

from __future__ import annotations

from server.http.problems import Kind, Problem
from server.media import json_scan
from server.media.json_scan import MAX_ELEMENTS


def check(data: bytes, max_elements: int = MAX_ELEMENTS) -> list[slice]:
    """Where the long strings are.

    Raises Problem: 400 where it is nested too deep or no UTF-8, 413 where it has more than `max_elements` elements."""
    try:
        return json_scan.check(data, max_elements)
    except json_scan.MalformedJson as error:
        raise Problem(Kind.INVALID_BODY, str(error)) from error
    except json_scan.TooManyElements as error:
        raise Problem(Kind.TOO_LARGE, str(error)) from error
