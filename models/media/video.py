"""Videos by their bytes: what they are, and their frames, upright, by time. FFmpeg runs in a process of its own for each.

That process has bounds on memory and time, and can open nothing but the bytes that it was given. If it crashes, the video is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.media.confined import Confined, ProgramDied
from models.media.containers import HEAD_BYTES, NAMES, demuxer, names_other_files

PROGRAM = "models.media.video_program"

Kind = Literal["not-a-video", "too-much", "broken"]


class VideoError(Exception):
    """A video that cannot be used; the message is for whoever sent it."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind: Kind = kind


@dataclass(frozen=True)
class ClipLimits:
    seconds: float = 120.0
    frames: int = 7_200
    pixels: int = 4096 * 2304
    """Of a frame."""


@dataclass(frozen=True)
class ClipInfo:
    """What a video is. Width and height are those of upright frames."""

    width: int
    height: int
    fps: float
    """Mean; frames may come at any time."""
    frames: int
    duration_s: float


@dataclass(frozen=True)
class Frame:
    """A frame and the rows of the grid that it is the nearest to."""

    time: float
    """Seconds since the video's first frame."""
    row: int
    rows: int
    pixels: NDArray[np.uint8]
    """(H, W, 3), RGB."""
    cut: bool = False
    """The video was cut between the frame before and this one."""

    @property
    def end(self) -> int:
        return self.row + self.rows


def probe(data: bytes | memoryview, limits: ClipLimits) -> ClipInfo:
    """Without decoding more than one frame. Raises VideoError."""
    with _run(data, limits, rate=None) as program:
        return ClipInfo(**_answer(program)["info"])


class Frames:
    """The frames of one video, from the first to the last, on a grid of `rate` rows a second. Close it, or use `take` to the end."""

    def __init__(
        self, data: bytes | memoryview, rate: float, limits: ClipLimits, *, start: float | None = None, end: float | None = None
    ) -> None:
        """start, end: seconds; rows outside are left out. Raises VideoError."""
        self._program: Confined | None = _run(data, limits, rate=rate, start=start, end=end)
        self._next: Frame | None = None
        """Read already, and behind the rows that were taken."""
        self.decoded = 0
        """Frames so far, those that no row shows included."""

    @property
    def ended(self) -> bool:
        return self._program is None and self._next is None

    def take(self, end_row: int) -> Iterator[Frame]:
        """The next frames, one by one: those that begin before a row. Raises VideoError."""
        while (frame := self._next or self._read()) is not None:
            if frame.row >= end_row:
                self._next = frame
                return
            self._next = None
            yield frame

    def close(self) -> None:
        if self._program is not None:
            self._program.close()
            self._program = None

    def _read(self) -> Frame | None:
        if self._program is None:
            return None
        try:
            told = _answer(self._program)
            self.decoded = told["decoded"]
            if "end" in told:
                self.close()
                return None
            pixels = np.empty((told["height"], told["width"], 3), np.uint8)
            self._program.read_into(pixels.data.cast("B"))
        except ProgramDied as death:
            self.close()
            raise VideoError("broken", f"decoding it failed: {death}") from death
        except VideoError:
            self.close()
            raise
        return Frame(told["time"], told["row"], told["rows"], pixels, told["cut"])


def _run(data: bytes | memoryview, limits: ClipLimits, **asked: Any) -> Confined:
    head = bytes(memoryview(data)[:HEAD_BYTES])
    name = demuxer(head)
    if name is None and names_other_files(head):
        raise VideoError("not-a-video", "a list that names other files: send the video itself")
    if name is None:
        raise VideoError("not-a-video", f"not a video in a container that is opened here ({NAMES})")
    request = {"demuxer": name, "limits": asdict(limits), "rate": None, "start": None, "end": None} | asked
    return Confined(PROGRAM, data, request)


def _answer(program: Confined) -> Mapping[str, Any]:
    """Raises VideoError."""
    try:
        told = program.message()
    except ProgramDied as death:
        raise VideoError("broken", f"decoding it failed: {death}") from death
    if "error" in told:
        raise VideoError(told["error"], told["detail"])
    return told
