"""Sounds in requests, on their own or in a video. They are decoded by a confined child process (`models.media.audio`): a job holds
samples, not files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.media import audio
from models.media.audio import NAMES, SoundLimits
from server.media.limits import RecordingError
from server.media.part_hints import suggest_image_part

__all__ = ["NAMES", "SoundLimits", "read"]

PROBLEMS: dict[audio.SoundErrorKind, str] = {
    "not-a-sound": "not-a-sound",  # no format or codec that we open
    "no-sound": "no-sound",  # a file that may hold sound, such as a video, and holds none
    "too-much": "too-large",
    "broken": "corrupt-sound",  # or too short
}


def read(content: bytes, rate: int, limits: SoundLimits) -> NDArray[np.float32]:
    """Return mono sound, float32 (n,), full scale 1, of a sound file or a video: each channel resampled to `rate` samples a second, then
    their mean. Raises RecordingError."""
    try:
        return audio.decode(content, rate, limits)
    except audio.SoundError as error:
        hint = suggest_image_part(content) if error.kind == "not-a-sound" else None
        raise RecordingError(PROBLEMS[error.kind], hint or str(error)) from error
