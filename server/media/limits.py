"""Limits of media beside pixels, which are settings of the service, and errors of parts that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from models.media.audio import SoundLimits
from models.media.video import ClipLimits


class MediaError(Exception):
    """A part that we cannot use; the message is for the one who sent it."""

    problem: str
    """The name of the problem that it is told as: `not-a-video`, `no-sound`, `too-large` and the like."""
    part: str | None = None
    """The part that it came as, where a task reads several."""


class InvalidPart(MediaError):
    """No file of its kind, or one that contradicts itself or the request."""

    problem = "invalid-option"


class ExcessivePart(MediaError):
    """Above a limit."""

    problem = "too-large"


class RecordingError(MediaError):
    """A video or a sound that we cannot use."""

    def __init__(self, problem: str, message: str) -> None:
        super().__init__(message)
        self.problem = problem


@contextmanager
def named(part: str) -> Iterator[None]:
    """Errors of the block name the part that they are about."""
    try:
        yield
    except MediaError as error:
        error.part = part
        raise


@dataclass(frozen=True)
class Limits:
    points: int = 4_000_000
    """Points of a map of depth or points."""
    queries: int = 20_000_000
    """Queries that one reconstruction may ask."""
    clips: ClipLimits = field(default_factory=ClipLimits)
    """Limits of videos."""
    sounds: SoundLimits = field(default_factory=SoundLimits)
    """Limits of sounds."""
