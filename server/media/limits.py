"""Limits of media other than pixels, which are settings of the service, and errors of unusable parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from models.media.audio import SoundLimits
from models.media.video import ClipLimits


class MediaError(Exception):
    """An unusable part. The message is for the client that sent it."""

    problem: str
    """Slug of the problem that it is reported as: `not-a-video`, `no-sound`, `too-large` and the like."""
    part: str | None = None
    """Name of the part, if a task reads several."""


class InvalidPart(MediaError):
    """A file of another kind, or one that contradicts itself or the request."""

    problem = "invalid-option"


class ExcessivePart(MediaError):
    """Above a limit."""

    problem = "too-large"


class RecordingError(MediaError):
    """An unusable video or sound."""

    def __init__(self, problem: str, message: str) -> None:
        super().__init__(message)
        self.problem = problem


@contextmanager
def naming_part(part: str) -> Iterator[None]:
    """Name the part in errors of the block."""
    try:
        yield
    except MediaError as error:
        error.part = part
        raise


@dataclass(frozen=True)
class MediaLimits:
    points: int = 4_000_000
    """Maximum number of pixels of a depth map or map of points."""
    queries: int = 20_000_000
    """Maximum number of queries of one reconstruction."""
    clips: ClipLimits = field(default_factory=ClipLimits)
    """Limits of videos."""
    sounds: SoundLimits = field(default_factory=SoundLimits)
    """Limits of sounds."""
