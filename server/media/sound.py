"""Sounds that requests bring, on their own or in a video. They are decoded here, in a confined child (`models.media.sound`): a job holds
samples, not files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.media import sound
from models.media.sound import NAMES, SoundLimits
from server.media.limits import MediaError
from server.media.mistaken import as_image

__all__ = ["NAMES", "CorruptSound", "NoSound", "NotASound", "SoundLimits", "TooMuchSound", "read"]


class NotASound(MediaError):
    """No format or codec that we open."""


class TooMuchSound(MediaError):
    """Above a limit."""


class NoSound(MediaError):
    """A file that may hold sound, such as a video, and holds none."""


class CorruptSound(MediaError):
    """Truncated, damaged, or too short."""


KINDS: dict[sound.Kind, type[MediaError]] = {
    "not-a-sound": NotASound,
    "no-sound": NoSound,
    "too-much": TooMuchSound,
    "broken": CorruptSound,
}


def read(content: bytes, rate: int, limits: SoundLimits) -> NDArray[np.float32]:
    """Return mono sound, float32 (n,), full scale 1, of a sound file or a video: each channel resampled to `rate` samples a second, then
    their mean. Raises MediaError."""
    try:
        return sound.decode(content, rate, limits)
    except sound.SoundError as error:
        mistaken = as_image(content) if error.kind == "not-a-sound" else None
        raise KINDS[error.kind](mistaken or str(error)) from error
