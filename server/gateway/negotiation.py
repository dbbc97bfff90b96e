"""Which media type an answer has: the client's `Accept` (RFC 9110, 12.5.1) against what a task offers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from server.http.problems import Kind, Problem
from server.tasks.options import quoted


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """The offered type of the highest weight, of equal ones the first. Raises Problem (406) where none is accepted."""
    elements = [element for element in (accept or "").lower().split(",") if element.strip()]
    if not elements:
        return offered[0]
    ranges = _ranges(elements)
    weights = {media_type: _weight(media_type, ranges) for media_type in offered}
    best = max(offered, key=lambda media_type: weights[media_type])
    if weights[best] <= 0:
        raise Problem(Kind.NOT_ACCEPTABLE, f"{quoted(accept)}: the answer is offered as {', '.join(offered)}", "Accept")
    return best


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
