"""Frames and sound out of files, by PyAV: as many as are wanted, not more."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from models.media.audio import ANALYSIS_WINDOW_S
from models.media.audio_decoding import decode_mono
from models.media.video_program import MediaRefused
from training.data.source import UnreadableSample

VIDEOS = frozenset({".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v"})
SOUNDS = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".aif", ".caf"})
_ERRORS = (OSError, ValueError, IndexError, av.error.FFmpegError)


def video_length(file: Path) -> tuple[int, float]:
    """Frames and frames per second, as the container says. Raises UnreadableSample."""
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            total = stream.frames
            if not total and container.duration:
                total = int(container.duration / av.time_base * rate)
    except _ERRORS as error:
        raise UnreadableSample(f"{file}: {error}") from error
    if total < 1 or rate <= 0:
        raise UnreadableSample(f"{file}: has no frames or no frame rate")
    return total, rate


def read_frames(file: Path, indices: Sequence[int], rate: float) -> Tensor:
    """uint8 (len(wanted), H, W, 3), RGB: frames by number, ascending. Where the file ends before, its last frame repeats.

    Raises UnreadableSample.
    """
    frames: dict[int, np.ndarray] = {}
    needed, last = set(indices), max(indices)
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            base = Fraction(stream.time_base or Fraction(1, 1000))
            start_pts = stream.start_time or 0
            container.seek(int(indices[0] / rate / base) + start_pts, stream=stream)  # to the key frame before
            for frame in container.decode(stream):
                if frame.pts is None:
                    continue
                number = round(float((frame.pts - start_pts) * base) * rate)
                if number in needed or not frames:
                    frames[number] = frame.to_ndarray(format="rgb24")
                if number >= last:
                    frames.setdefault(number, frame.to_ndarray(format="rgb24"))
                    break
    except _ERRORS as error:
        raise UnreadableSample(f"{file}: {error}") from error
    if not frames:
        raise UnreadableSample(f"{file}: no frame could be decoded")
    decoded = sorted(frames)
    nearest = [max((number for number in decoded if number <= frame), default=decoded[0]) for frame in indices]
    return torch.from_numpy(np.stack([frames[number] for number in nearest]))


def read_sound(file: Path, sample_rate: int, seconds: float, start: float = 0.0) -> Tensor:
    """Return mono (samples,), as the service hears it (`models.media.audio_decoding`), from `start` on, at most so many seconds.

    Raises UnreadableSample."""
    skip = int(start * sample_rate)
    stop = skip + int(seconds * sample_rate)
    parts: list[np.ndarray] = []
    have = 0
    try:
        with av.open(str(file)) as container:
            for chunk in decode_mono(container, sample_rate):
                parts.append(chunk[max(0, skip - have) : stop - have])
                have += len(chunk)
                if have >= stop:
                    break
    except (MediaRefused, *_ERRORS) as error:
        raise UnreadableSample(f"{file}: {error}") from error
    sound = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    min_samples = round(ANALYSIS_WINDOW_S * sample_rate)
    if len(sound) < min_samples:
        raise UnreadableSample(f"{file}: {len(sound)} samples at {sample_rate} Hz are too few: one analysis window has {min_samples}")
    return torch.from_numpy(np.ascontiguousarray(sound))
