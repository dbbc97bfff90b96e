"""A video with boxes, skeletons and labels drawn into it, made in a process of its own (`server.media.annotating_program`)."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from models.media.confined import Confined, ProgramDied
from models.media.containers import HEAD_BYTES, demuxer
from server.media.video import ClipLimits, CorruptVideo

PROGRAM = "server.media.annotating_program"
PATIENCE_S = 600.0
"""It says nothing until the clip is done."""
MOST_BYTES = 2**30
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Drawn:
    """What is drawn of one person. Times in seconds from the first frame, the rest in pixels of upright frames."""

    person: int
    boxes: Sequence[Sequence[float]]
    """t, x, y, width, height."""
    poses: Sequence[Sequence[float]]
    """t, and x, y and score of COCO's 17 keypoints."""
    texts: Sequence[tuple[float, float, Sequence[str]]]
    """Begin, end, and lines."""


def annotated(video: bytes, people: Sequence[Drawn], *, most_pixels: int = ClipLimits.pixels) -> bytes:
    """An MP4 with H.264, or VP9 where there is no encoder for it, or none for so large frames; and the sound as it was, or as AAC where MP4
    does not take it. Frames of more than `most_pixels` are left out.

    Raises CorruptVideo."""
    drawings = json.dumps([asdict(person) for person in people]).encode()
    data = LENGTH.pack(len(drawings)) + drawings + video
    with Confined(PROGRAM, data, {"demuxer": demuxer(video[:HEAD_BYTES]), "most_pixels": most_pixels}, patience=PATIENCE_S) as program:
        try:
            told = program.message()
            if "error" in told:
                raise _failed(told["error"])
            if not 0 < told["bytes"] <= MOST_BYTES:
                raise _failed(f"it has {told['bytes']} bytes")
            clip = bytearray(told["bytes"])
            program.read_into(memoryview(clip))
        except ProgramDied as death:
            raise _failed(str(death)) from death
    return bytes(clip)


def _failed(reason: str) -> CorruptVideo:
    error = CorruptVideo(f"the annotated clip cannot be made: {reason}")
    error.part = "video"
    return error
