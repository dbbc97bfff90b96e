"""Which media type an answer has: the client's `Accept` (RFC 9110, 12.5.1) against what a task offers."""

from __future__ import annotations

from collections.abc import Sequence

from server.gateway.problems import Kind, Problem


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """The offered type of the highest weight, of equal ones the first. Raises Problem (406) where none is accepted."""
    if accept is None or not accept.strip():
        return offered[0]
    ranges = _ranges(accept)
    weights = {media_type: _weight(media_type, ranges) for media_type in offered}
    best = max(offered, key=lambda media_type: weights[media_type])
    if weights[best] <= 0:
        raise Problem(Kind.NOT_ACCEPTABLE, f"{accept!r}: the answer is offered as {', '.join(offered)}", "Accept")
    return best


def _ranges(accept: str) -> dict[str, float]:
    """Media range → weight. A weight that is none counts as 0: what is not understood is not a wish."""
    ranges = {}
    for element in accept.lower().split(","):
        media_range, *parameters = (text.strip() for text in element.split(";"))
        weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            ranges[media_range] = min(1.0, max(0.0, float(weight)))
        except ValueError:
            ranges[media_range] = 0.0
    return ranges


def _weight(media_type: str, ranges: dict[str, float]) -> float:
    """By the most specific range that matches."""
    for media_range in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if media_range in ranges:
            return ranges[media_range]
    return 0.0
