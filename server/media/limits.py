"""Limits of media beside pixels, which are settings of the service, and the error of what they, or we, cannot take."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.media.video import ClipLimits


class MediaError(Exception):
    """A part that we cannot use; the message is for the one who sent it."""

    part: str | None = None
    """The part that it came as, where a task reads several."""


@dataclass(frozen=True)
class Limits:
    points: int = 4_000_000
    """Of a map of depth or points."""
    queries: int = 20_000_000
    """That one reconstruction may ask."""
    clips: ClipLimits = field(default_factory=ClipLimits)
    """Of videos."""
