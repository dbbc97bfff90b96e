"""Videos that requests bring: what they are, and how people are drawn into them. Workers decode them (`models.media.video`)."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from models.media import video
from models.media.containers import HEAD_BYTES, NAMES, demuxer
from models.media.video import ClipInfo, ClipLimits
from models.processes.confined_process import ConfinedProcess, ProcessDied
from server.media.limits import RecordingError
from server.media.part_hints import other_part

__all__ = ["NAMES", "ClipInfo", "ClipLimits", "Drawn", "annotated", "probe"]

PROGRAM = "server.media.annotate_video_program"
PATIENCE_S = 600.0
"""It says nothing until the clip is done."""
MOST_BYTES = 2**30
LENGTH = struct.Struct("<Q")


PROBLEMS: dict[video.VideoErrorKind, str] = {
    "not-a-video": "not-a-video",  # no container or codec that we open
    "no-video": "no-video",  # a container of sound alone
    "too-much": "too-large",
    "broken": "corrupt-video",  # or without frames
}


@dataclass(frozen=True)
class Drawn:
    """A person as drawn. Times in seconds from the first frame, the rest in pixels of upright frames."""

    person: int
    boxes: Sequence[Sequence[float]]
    """t, x, y, width, height."""
    poses: Sequence[Sequence[float]]
    """t, and x, y and score of COCO's 17 keypoints."""
    texts: Sequence[tuple[float, float, Sequence[str]]]
    """Begin, end, and lines."""


def probe(data: bytes, limits: ClipLimits) -> ClipInfo:
    """Describe a video, without decoding more than a frame. Raises RecordingError."""
    try:
        return video.probe(data, limits)
    except video.VideoError as error:
        mistaken = other_part(data) if error.kind == "not-a-video" else None
        raise RecordingError(PROBLEMS[error.kind], mistaken or str(error)) from error


def annotated(clip: bytes, people: Sequence[Drawn], *, most_pixels: int = ClipLimits.pixels) -> bytes:
    """The clip with boxes, skeletons and labels drawn into it, made in a process of its own: an MP4 with H.264, or VP9 where there is no
    encoder for it, or none for so large frames; and the sound as it was, or as AAC where MP4 does not take it. Frames of more than
    `most_pixels` are left out.

    Raises RecordingError."""
    drawings = json.dumps([asdict(person) for person in people]).encode()
    data = LENGTH.pack(len(drawings)) + drawings + clip
    with ConfinedProcess(
        PROGRAM, data, {"demuxer": demuxer(clip[:HEAD_BYTES]), "most_pixels": most_pixels}, patience=PATIENCE_S
    ) as program:
        try:
            told = program.message()
            if "error" in told:
                raise _failed(told["error"])
            if not 0 < told["bytes"] <= MOST_BYTES:
                raise _failed(f"it has {told['bytes']} bytes")
            made = bytearray(told["bytes"])
            program.read_into(memoryview(made))
        except ProcessDied as death:
            raise _failed(str(death)) from death
    return bytes(made)


def _failed(reason: str) -> RecordingError:
    error = RecordingError("corrupt-video", f"the annotated clip cannot be made: {reason}")
    error.part = "video"
    return error
