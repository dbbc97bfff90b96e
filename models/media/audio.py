"""Decoding of sounds from bytes: mono, at a model's sample rate. FFmpeg runs in a process of its own for each sound.

That process has limits of memory and time, and can open only the bytes that it was given. If it crashes, the sound is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.media.audio_formats import NAMES, demuxer
from models.media.audio_windows import ANALYSIS_WINDOW_S
from models.media.containers import HEAD_BYTES, names_other_files
from models.processes.confined_process import ConfinedProcess, ProcessDied, retry_if_killed

__all__ = ["NAMES", "SoundError", "SoundErrorKind", "SoundLimits", "decode"]

PROGRAM = "models.media.audio_program"
SLACK_S = 1.0
"""Tolerance in seconds of a program's output beyond the limit."""

SoundErrorKind = Literal["not-a-sound", "no-sound", "too-much", "broken"]


class SoundError(Exception):
    """Error of a sound that cannot be used; the message is for the client."""

    def __init__(self, kind: SoundErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: SoundErrorKind = kind


@dataclass(frozen=True)
class SoundLimits:
    seconds: float = 120.0


def decode(data: bytes | memoryview, rate: int, limits: SoundLimits) -> NDArray[np.float32]:
    """Decode the sound of a file, or of a video, to float32 (n,): each channel resampled to `rate` samples per second, then their mean.

    Raises SoundError for another file, a sound above a limit, a damaged one, or one that is shorter than one frame of a spectrogram.
    """
    return retry_if_killed(partial(_decode, data, rate, limits))


def _decode(data: bytes | memoryview, rate: int, limits: SoundLimits) -> NDArray[np.float32]:
    chunks, remaining = list[NDArray[np.float32]](), round((limits.seconds + SLACK_S) * rate)
    with _run(data, rate, limits) as program:
        while "end" not in (message := _next_message(program)):
            remaining -= message["samples"]
            if remaining < 0:
                raise SoundError("broken", "decoding it failed: it has more samples than the limit")
            chunk = np.empty(message["samples"], np.float32)
            _read_samples(program, chunk)
            chunks.append(chunk)
    sound = np.concatenate(chunks) if chunks else np.empty(0, np.float32)
    if not len(sound):
        raise SoundError("broken", "it has no samples")
    minimum = round(ANALYSIS_WINDOW_S * rate)
    if len(sound) < minimum:
        raise SoundError("broken", f"{len(sound)} samples at {rate} Hz are too few: one analysis window has {minimum}")
    return sound


def _run(data: bytes | memoryview, rate: int, limits: SoundLimits) -> ConfinedProcess:
    name = demuxer(data)
    if name is None and names_other_files(bytes(memoryview(data)[:HEAD_BYTES])):
        raise SoundError("not-a-sound", "a list that names other files: send the sound itself")
    if name is None:
        raise SoundError("not-a-sound", f"not a sound in a format that is opened here ({NAMES})")
    return ConfinedProcess(PROGRAM, data, {"demuxer": name, "rate": rate, "seconds": limits.seconds}, often=True)


def _next_message(program: ConfinedProcess) -> Mapping[str, Any]:
    """Return the next message. Raises SoundError."""
    try:
        message = program.message()
    except ProcessDied as death:
        raise SoundError("broken", f"decoding it failed: {death}") from death
    if "error" in message:
        raise SoundError(message["error"], message["detail"])
    return message


def _read_samples(program: ConfinedProcess, chunk: NDArray[np.float32]) -> None:
    """Fill `chunk` with the samples that follow. Raises SoundError."""
    try:
        program.read_into(chunk.data.cast("B"))
    except ProcessDied as death:
        raise SoundError("broken", f"decoding it failed: {death}") from death
