"""Videos by their bytes: what they are, and their frames, upright, by time. FFmpeg runs in a process of its own for each.

That process has bounds on memory and time, and can open nothing but the bytes that it was given. If it crashes, the video is refused.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.media.containers import HEAD_BYTES, NAMES, demuxer, names_other_files
from models.processes.confined_process import ConfinedProcess, ProcessDied, retry_if_killed

PROGRAM = "models.media.video_program"
MAX_FRAMES_AHEAD = 8
"""Frames that are read before they are asked for, at most."""
MAX_BYTES_AHEAD = 64 * 2**20
"""Memory that they take, at most; one of any size is read."""
DECODER_BYTES = 80 * 2**20
"""Memory of the process that reads a video, its frames aside."""
DECODER_FRAMES = 24
"""Frames that it keeps, each of 12 bits a pixel."""

VideoErrorKind = Literal["not-a-video", "no-video", "too-much", "broken"]


class VideoError(Exception):
    """A video that cannot be used; the message is for whoever sent it."""

    def __init__(self, kind: VideoErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: VideoErrorKind = kind


class FrameNotReady(Exception):
    """The next frame takes longer than it may be waited for."""


@dataclass(frozen=True)
class ClipLimits:
    seconds: float = 120.0
    frames: int = 7_200
    pixels: int = 4096 * 2304
    """Pixels of a frame."""

    @classmethod
    def of_accepted(cls, width: int, height: int) -> ClipLimits:
        """Limits of a video that was accepted by its headers, its packets and its first frame, which has this size. Frames may grow on the
        way, but not without bound: those beyond it are left out like damaged ones."""
        return cls(seconds=float("inf"), frames=2**31 - 1, pixels=max(cls.pixels, width * height))


@dataclass(frozen=True)
class ClipInfo:
    """Facts of a video. Width and height are those of upright frames."""

    width: int
    height: int
    fps: float
    """Mean; frames may come at any time."""
    frames: int
    duration_s: float


@dataclass(frozen=True)
class SampledFrame:
    """A frame and the rows of the grid that it is the nearest to."""

    time: float
    """Seconds since the video's first frame."""
    row: int
    rows: int
    pixels: NDArray[np.uint8]
    """(h, w, 3), RGB."""
    size: tuple[int, int]
    """Height and width of the video's upright frames: those of `pixels` unless it was shrunk."""
    cut: bool = False
    """The video was cut between the frame before and this one."""

    @property
    def end(self) -> int:
        return self.row + self.rows


def probe(data: bytes | memoryview, limits: ClipLimits) -> ClipInfo:
    """Without decoding more than one frame. Raises VideoError."""
    return retry_if_killed(partial(_probe, data, limits))


def _probe(data: bytes | memoryview, limits: ClipLimits) -> ClipInfo:
    """Raises VideoError."""
    with _run(data, limits) as program:
        return ClipInfo(**_answer(program)["info"])


class Frames:
    """The frames of one video, from the first to the last, on a grid of `rate` rows a second. Close it, or use `take` to the end."""

    def __init__(
        self,
        data: bytes | memoryview,
        rate: float,
        limits: ClipLimits,
        *,
        start: float | None = None,
        end: float | None = None,
        long_side: int | None = None,
    ) -> None:
        """start, end: seconds; frames from `start` on and before `end` are wanted. long_side: larger frames are shrunk to it.

        Raises VideoError."""
        self._ahead = _ReadAhead(_run(data, limits, ahead=True, rate=rate, start=start, end=end, long_side=long_side))
        self._next: SampledFrame | None = None
        """Read already, and behind the rows that were taken."""

    @property
    def decoded(self) -> int:
        """Frames so far, those that no row shows included."""
        return self._ahead.decoded

    @property
    def ended(self) -> bool:
        return self._next is None and self._ahead.ended

    def take(self, end_row: int, until: float | None = None) -> Iterator[SampledFrame]:
        """The next frames, one by one: those that begin before a row. Raises VideoError, and NotYet.

        until: monotonic seconds until which a frame may be waited for; None: for ever."""
        while (frame := self._next or self._ahead.take(until)) is not None:
            if frame.row >= end_row:
                self._next = frame
                return
            self._next = None
            yield frame

    def close(self) -> None:
        self._ahead.close()

    def __del__(self) -> None:
        if hasattr(self, "_ahead"):  # its thread would read on
            self.close()


class NumberedFrames(Frames):
    """Frames of one video by number: number n is what is shown n / rate seconds after the first frame, so the n-th frame where all last
    equally long. The last one of a video also stands for the numbers behind it."""

    def __init__(self, data: bytes | memoryview, numbers: Sequence[int], rate: float, limits: ClipLimits) -> None:
        """numbers: rising, without repetition; rate: the video's mean one, frames a second. Raises VideoError."""
        self._ahead = _ReadAhead(_run(data, limits, ahead=True, numbers=list(numbers), rate=rate))
        self._next = None


class _ReadAhead:
    """Frames that a program sends. A thread reads them before they are asked for, so the program goes on while others are looked at."""

    def __init__(self, program: ConfinedProcess) -> None:
        self.decoded = 0
        self._program = program
        self._changed = threading.Condition()
        self._waiting: deque[SampledFrame] = deque()
        self._error: VideoError | None = None
        self._all_read = self._closed = False
        self._thread = threading.Thread(target=self._read_all, name="frames", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        with self._changed:
            return self._all_read and not self._waiting

    def take(self, until: float | None = None) -> SampledFrame | None:
        """The next one; None after the last. Raises VideoError, and NotYet."""
        with self._changed:
            patience = None if until is None else max(0.0, until - time.monotonic())
            self._changed.wait_for(lambda: self._waiting or self._all_read, patience)
            if self._waiting:
                self._changed.notify_all()
                return self._waiting.popleft()
            if not self._all_read:
                raise FrameNotReady
        self.close()
        if self._error is not None:
            raise self._error
        return None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._program.kill()  # which ends a read that the thread is in
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._program.close()

    def _read_all(self) -> None:
        try:
            while (frame := self._read()) is not None:
                with self._changed:
                    self._changed.wait_for(lambda frame=frame: self._closed or self._fits(frame))  # type: ignore[misc]
                    if self._closed:
                        return
                    self._waiting.append(frame)
                    self._changed.notify_all()
        except ProcessDied as death:
            self._error = VideoError("broken", f"decoding it failed: {death}")
            self._error.__cause__ = death
        except VideoError as error:
            self._error = error
        finally:
            with self._changed:
                self._all_read = True
                self._changed.notify_all()

    def _fits(self, frame: SampledFrame) -> bool:
        return not self._waiting or (
            len(self._waiting) < MAX_FRAMES_AHEAD and (len(self._waiting) + 1) * frame.pixels.nbytes <= MAX_BYTES_AHEAD
        )

    def _read(self) -> SampledFrame | None:
        told = _answer(self._program)
        while "going_on" in told:
            self.decoded = told["decoded"]
            told = _answer(self._program)
        self.decoded = told["decoded"]
        if "end" in told:
            return None
        pixels = np.empty((told["height"], told["width"], 3), np.uint8)
        self._program.read_into(pixels.data.cast("B"))
        height, width = told["size"]
        return SampledFrame(told["time"], told["row"], told["rows"], pixels, (height, width), told["cut"])


def bytes_ahead(width: int, height: int, long_side: int | None = None) -> int:
    """Memory of the frames that wait to be taken, at most; each as large as `Frames` makes it."""
    share = 1.0 if long_side is None else min(1.0, long_side / max(width, height))
    frame = 3 * round(width * share) * round(height * share)
    return max(frame, min(MAX_FRAMES_AHEAD * frame, MAX_BYTES_AHEAD))


def decoder_bytes(width: int, height: int) -> int:
    """Memory of a process that reads a video with frames of this size."""
    return DECODER_BYTES + DECODER_FRAMES * width * height * 3 // 2


def _run(data: bytes | memoryview, limits: ClipLimits, *, ahead: bool = False, **asked: Any) -> ConfinedProcess:
    head = bytes(memoryview(data)[:HEAD_BYTES])
    name = demuxer(head)
    if name is None and names_other_files(head):
        raise VideoError("not-a-video", "a list that names other files: send the video itself")
    if name is None:
        raise VideoError("not-a-video", f"not a video in a container that is opened here ({NAMES})")
    request = {
        "demuxer": name,
        "limits": asdict(limits),
        "rate": None,
        "start": None,
        "end": None,
        "long_side": None,
        "numbers": None,
    } | asked
    return ConfinedProcess(PROGRAM, data, request, often=True, ahead=ahead)


def _answer(program: ConfinedProcess) -> Mapping[str, Any]:
    """Raises VideoError."""
    try:
        told = program.message()
    except ProcessDied as death:
        raise VideoError("broken", f"decoding it failed: {death}") from death
    if "error" in told:
        raise VideoError(told["error"], told["detail"])
    return told
