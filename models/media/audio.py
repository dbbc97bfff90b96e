"""Decoding of sounds from bytes: mono, at a model's sample rate, and their windows, each as long as a spectrogram. Imports no torch.

Formats are recognised by their bytes: FFmpeg never guesses, so that a playlist is never opened as one. It runs in a process of its own for
each sound, which has limits of memory and time, and can open only the bytes that it was given. If it crashes, the sound is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.bundle_schema import Sound
from models.media import video
from models.media.video import HEAD_BYTES, names_other_files
from models.processes.confined_process import ConfinedProcess, ProcessDied, retry_if_killed

NAMES = (
    "WAV, FLAC, MP3, Ogg (Vorbis, Opus), AAC, AIFF or CAF, or the sound of an MP4, MOV, 3GP, WebM, Matroska, AVI, MPEG, MPEG-TS, WMV, FLV "
    "or RealMedia file"
)
CONTAINERS_WITHOUT_SOUND = frozenset({"gif", "mpegvideo"})
FORMATS_BY_TYPE = {b"WAVE": "wav", b"AIFF": "aiff", b"AIFC": "aiff"}
"""Demuxers by the type of a RIFF or IFF file, its bytes 8 to 11."""
CHUNK_IDS = frozenset({b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM"})
TAG_HEADER_BYTES = 10
"""Size in bytes of an ID3v2 tag before its content (id3.org, ID3v2.4.0 section 3.1)."""
MAX_TAGS = 16
MAX_PADDING_BYTES = 2**16
MAX_FRAME_BYTES = 2881
"""Maximum size of a frame of MPEG audio, in bytes: layer III has 1441, layer II of MPEG-2.5 has 2880, both with a byte of padding."""


def demuxer(data: bytes | memoryview) -> str | None:
    """Return FFmpeg's name for the format of a sound, or of a container that may have one; None for a format that is not accepted."""
    view = memoryview(data)
    start = _skip_tags(view)
    head = bytes(view[start : start + HEAD_BYTES])
    if head[:4] in CHUNK_IDS and head[8:12] in FORMATS_BY_TYPE:
        return FORMATS_BY_TYPE[head[8:12]]
    if head.startswith(b"fLaC"):
        return "flac"
    if head.startswith(b"caff"):
        return "caf"
    if start == 0 and (container := video.demuxer(head)) is not None:
        return None if container in CONTAINERS_WITHOUT_SOUND else container
    padded = bytes(view[start : start + MAX_PADDING_BYTES + MAX_FRAME_BYTES + 4])
    frames = padded.lstrip(b"\0")
    if _is_adts(frames):
        return "aac"
    return "mp3" if start or _is_mpeg_audio(frames) else None


def _skip_tags(data: memoryview) -> int:
    """Return the end of the ID3v2 tags before a sound, which may contain megabytes of images."""
    start = 0
    for _ in range(MAX_TAGS):
        if bytes(data[start : start + 3]) != b"ID3" or len(data) - start < TAG_HEADER_BYTES:
            break
        size = 0
        for byte in data[start + 6 : start + TAG_HEADER_BYTES]:
            size = size << 7 | byte & 0x7F
        has_footer = bool(data[start + 5] & 0x10)
        start += TAG_HEADER_BYTES * (1 + has_footer) + size
    return start


def _is_adts(frames: bytes) -> bool:
    """Return True if a frame of AAC (ISO 13818-7, section 6.2) begins here, and another one where it ends, unless it is the last."""
    if len(frames) < 7 or not _is_adts_sync(frames):
        return False
    length = (frames[3] & 0x03) << 11 | frames[4] << 3 | frames[5] >> 5
    return length >= 7 and (length + 2 > len(frames) or _is_adts_sync(frames[length:]))


def _is_adts_sync(frames: bytes) -> bool:
    return frames[0] == 0xFF and frames[1] & 0xF6 == 0xF0


def _is_mpeg_audio(frames: bytes) -> bool:
    """Return True if a frame of MPEG audio (ISO 11172-3, section 2.4.1.3) begins here.

    Another one of the same version, layer and sample rate must follow soon, unless it is the last.
    """
    if len(frames) < 4 or frames[0] != 0xFF or frames[1] & 0xE0 != 0xE0:
        return False
    version, layer, bit_rate, sample_rate = frames[1] >> 3 & 3, frames[1] >> 1 & 3, frames[2] >> 4, frames[2] >> 2 & 3
    if version == 1 or layer == 0 or bit_rate in (0, 15) or sample_rate == 3:
        return False
    if len(frames) < MAX_FRAME_BYTES + 4:
        return True
    sync, at = frames[:2], 0
    while (at := frames.find(sync, at + 1, MAX_FRAME_BYTES + 2)) > 0:
        if frames[at + 2] & 0x0C == frames[2] & 0x0C:
            return True
    return False


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


HOP_S, ANALYSIS_WINDOW_S = 0.01, 0.025
"""Hop between frames of a spectrogram, and length of the samples of one frame, in seconds (`models.media.fbank`)."""
MAX_WINDOWS = 12
MIN_REST_FRACTION = 0.1
"""Minimum part of a window at the end of a sound that counts as a window, since it counts as much as the others."""


def window_samples(sound: Sound) -> int:
    """Return the number of samples from the start of a window to that of the next one."""
    return sound.frames * int(sound.sample_rate * HOP_S)


def count_windows(samples: int, sound: Sound) -> int:
    """Return the number of windows of a sound, the last one padded; at most `MAX_WINDOWS`."""
    full, rest = divmod(samples, window_samples(sound))
    has_partial = rest >= max(MIN_REST_FRACTION * window_samples(sound), ANALYSIS_WINDOW_S * sound.sample_rate)
    return min(MAX_WINDOWS, max(1, full + has_partial))
