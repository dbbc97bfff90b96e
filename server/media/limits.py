"""Limits of media beside pixels; settings of the service."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.media.video import ClipLimits


@dataclass(frozen=True)
class Limits:
    points: int = 4_000_000
    """Of a map of depth or points."""
    queries: int = 20_000_000
    """That one reconstruction may ask."""
    clips: ClipLimits = field(default_factory=ClipLimits)
    """Of videos."""
