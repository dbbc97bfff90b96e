"""Videos and sounds in requests: properties of videos, people drawn into them, and samples of sounds.

Workers decode videos (`models.media.video`). Sounds, alone or in a video, are decoded by a confined child process (`models.media.audio`): a
job holds samples, not files.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from models.media import audio, video
from models.media.audio import SoundLimits
from models.media.video import HEAD_BYTES, ClipInfo, ClipLimits, demuxer
from models.processes.confined_process import ConfinedProcess, ProcessDied
from server.media.limits import RecordingError
from server.media.part_hints import suggest_image_part, suggest_part

PROGRAM = "server.media.annotate_video_program"
PATIENCE_S = 600.0
"""Timeout of the program, which reports nothing until the clip is done."""
MAX_ANNOTATED_BYTES = 2**30
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class PersonAnnotation:
    """A person as drawn. Times in seconds from the first frame, the rest in pixels of upright frames."""

    person: int
    boxes: Sequence[Sequence[float]]
    """t, x, y, width, height."""
    poses: Sequence[Sequence[float]]
    """t, and x, y and score of COCO's 17 keypoints."""
    texts: Sequence[tuple[float, float, Sequence[str]]]
    """Start, end, and lines."""


def probe(data: bytes, limits: ClipLimits) -> ClipInfo:
    """Describe a video, without decoding more than a frame. Raises RecordingError."""
    try:
        return video.probe(data, limits)
    except video.VideoError as error:
        hint = suggest_part(data) if error.kind == "not-a-video" else None
        raise _recording_error("video", error.kind, hint or str(error)) from error


def annotate(clip: bytes, people: Sequence[PersonAnnotation], *, most_pixels: int = ClipLimits.pixels) -> bytes:
    """Return the clip with boxes, skeletons and labels drawn into it by a separate process: an MP4 with H.264, or with VP9 if there is no
    encoder for it or none for such large frames. Sound is copied, or encoded as AAC if MP4 cannot hold it. Frames of more than
    `most_pixels` are left out.

    Raises RecordingError."""
    drawings = json.dumps([asdict(person) for person in people]).encode()
    data = LENGTH.pack(len(drawings)) + drawings + clip
    with ConfinedProcess(
        PROGRAM, data, {"demuxer": demuxer(clip[:HEAD_BYTES]), "most_pixels": most_pixels}, patience=PATIENCE_S
    ) as program:
        try:
            message = program.message()
            if "error" in message:
                raise _annotation_error(message["error"])
            if not 0 < message["bytes"] <= MAX_ANNOTATED_BYTES:
                raise _annotation_error(f"it has {message['bytes']} bytes")
            made = bytearray(message["bytes"])
            program.read_into(memoryview(made))
        except ProcessDied as death:
            raise _annotation_error(str(death)) from death
    return bytes(made)


def _recording_error(noun: str, kind: str, message: str) -> RecordingError:
    """Return the error for a file whose decoder failed for a reason of this kind."""
    return RecordingError({"too-much": "too-large", "broken": f"corrupt-{noun}"}.get(kind, kind), message)


def _annotation_error(reason: str) -> RecordingError:
    error = RecordingError("corrupt-video", f"the annotated clip cannot be made: {reason}")
    error.part = "video"
    return error


def read_sound(content: bytes, rate: int, limits: SoundLimits) -> NDArray[np.float32]:
    """Return mono sound, float32 (n,), full scale 1, of a sound file or a video: each channel resampled to `rate` samples a second, then
    their mean. Raises RecordingError."""
    try:
        return audio.decode(content, rate, limits)
    except audio.SoundError as error:
        hint = suggest_image_part(content) if error.kind == "not-a-sound" else None
        raise _recording_error("sound", error.kind, hint or str(error)) from error
