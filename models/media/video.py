"""Properties and frames of videos from bytes: upright frames, by time. FFmpeg runs in a process of its own for each video.

That process has limits of memory and time, and can open only the bytes that it was given. If it crashes, the video is refused.
Containers are recognised by their first bytes: FFmpeg never guesses, so that a playlist is never opened as one.
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

from models.processes.confined_process import ConfinedProcess, ProcessDied, retry_if_killed

HEAD_BYTES = 512
"""Number of bytes of a file that are enough to recognise it."""
NAMES = "MP4, MOV, 3GP, WebM, Matroska, AVI, MPEG, MPEG-TS, Ogg, WMV, FLV, RealMedia or GIF"
MP4_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
PREFIXES = {
    b"\x1a\x45\xdf\xa3": "matroska",
    b"OggS": "ogg",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    b"FLV\x01": "flv",
    b".RMF": "rm",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"\x00\x00\x01\xba": "mpeg",
    b"\x00\x00\x01\xb3": "mpegvideo",
}
PLAYLIST_PREFIXES = (b"#EXTM3U", b"ffconcat", b"file ", b"<?xml", b"<MPD", b"[playlist]", b"v=0\r", b"v=0\n")
"""First bytes of files that only name others: HLS, concat scripts, DASH, PLS and SDP."""
SYNC_BYTE, PACKET_BYTES, STAMPED_PACKET_BYTES = 0x47, 188, 192
"""Sync byte and packet lengths of MPEG transport streams; Blu-rays add a timestamp of four bytes before each packet."""


def demuxer(head: bytes) -> str | None:
    """Return FFmpeg's name for the container that begins with `head`; None for one that is not accepted."""
    if head[4:8] in MP4_BOXES:
        return "mov"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    for prefix, name in PREFIXES.items():
        if head.startswith(prefix):
            return name
    return "mpegts" if _has_sync(head, 0, PACKET_BYTES) or _has_sync(head, 4, STAMPED_PACKET_BYTES) else None


def names_other_files(head: bytes) -> bool:
    """Return True for playlists and other lists of files."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return text.startswith(PLAYLIST_PREFIXES)


def _has_sync(head: bytes, first: int, step: int) -> bool:
    offsets = range(first, min(len(head), HEAD_BYTES), step)
    return len(offsets) > 1 and all(head[offset] == SYNC_BYTE for offset in offsets)


PROGRAM = "models.media.video_program"
MAX_FRAMES_AHEAD = 8
"""Maximum number of frames that are read in advance."""
MAX_BYTES_AHEAD = 64 * 2**20
"""Maximum memory of frames that are read in advance; one of any size is read."""
DECODER_BYTES = 80 * 2**20
"""Memory of the process that reads a video, without its frames."""
DECODER_FRAMES = 24
"""Number of frames in that process, each of 12 bits per pixel."""

VideoErrorKind = Literal["not-a-video", "no-video", "too-much", "broken"]


class VideoError(Exception):
    """Error of a video that cannot be used; the message is for the client."""

    def __init__(self, kind: VideoErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: VideoErrorKind = kind


class FrameNotReady(Exception):
    """Error of a frame that is not decoded within the waiting time."""


@dataclass(frozen=True)
class ClipLimits:
    seconds: float = 120.0
    frames: int = 7_200
    pixels: int = 4096 * 2304

    @classmethod
    def from_accepted(cls, width: int, height: int) -> ClipLimits:
        """Return limits for a video whose headers, packets and first frame were accepted; the frame has this size. Frames may grow, but not
        without bound: those beyond it are skipped like damaged ones."""
        return cls(seconds=float("inf"), frames=2**31 - 1, pixels=max(cls.pixels, width * height))


@dataclass(frozen=True)
class ClipInfo:
    """Facts about a video. Width and height are those of upright frames."""

    width: int
    height: int
    fps: float
    """Mean rate; intervals between frames may differ."""
    frames: int
    duration_s: float


@dataclass(frozen=True)
class SampledFrame:
    """A frame and the rows of the grid to which it is the nearest."""

    time: float
    """Time in seconds since the video's first frame."""
    row: int
    rows: int
    pixels: NDArray[np.uint8]
    """(h, w, 3), RGB."""
    size: tuple[int, int]
    """Height and width of the video's upright frames: those of `pixels` unless it was shrunk."""
    cut: bool = False
    """Whether the video was cut between the frame before and this one."""

    @property
    def end(self) -> int:
        return self.row + self.rows


def probe(data: bytes | memoryview, limits: ClipLimits) -> ClipInfo:
    """Read a video's facts, decoding at most one frame. Raises VideoError."""
    return retry_if_killed(partial(_probe, data, limits))


def _probe(data: bytes | memoryview, limits: ClipLimits) -> ClipInfo:
    with _run(data, limits) as program:
        return ClipInfo(**_next_message(program)["info"])


class Frames:
    """Frames of one video, in order, on a grid of `rate` rows per second. Close it, or use `take` to the end."""

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
        """start, end: seconds; frames from `start` on and before `end` are returned. long_side: larger frames are shrunk to it.

        Raises VideoError.
        """
        self._ahead = _ReadAhead(_run(data, limits, ahead=True, rate=rate, start=start, end=end, long_side=long_side))
        self._next: SampledFrame | None = None
        """Frame that has been read, and is after the rows that were taken."""

    @property
    def decoded(self) -> int:
        """Number of frames so far, including those that no row shows."""
        return self._ahead.decoded

    @property
    def ended(self) -> bool:
        return self._next is None and self._ahead.ended

    def take(self, end_row: int, until: float | None = None) -> Iterator[SampledFrame]:
        """Yield the next frames, those that begin before a row. Raises VideoError and FrameNotReady.

        until: monotonic seconds until which to wait for a frame; None: no limit.
        """
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
    """Frames of one video by number: number n is shown n / rate seconds after the first frame, so it is frame n at a constant rate. The
    last frame of a video also stands for the numbers after it."""

    def __init__(self, data: bytes | memoryview, indices: Sequence[int], rate: float, limits: ClipLimits) -> None:
        """Start reading ahead. indices: rising, without repetition; rate: the video's mean one, in frames per second. Raises VideoError."""
        self._ahead = _ReadAhead(_run(data, limits, ahead=True, numbers=list(indices), rate=rate))
        self._next = None


class _ReadAhead:
    """Queue of a program's frames. A thread reads them in advance, so that the program decodes while earlier frames are used."""

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
        """Return the next frame; None after the last. Raises VideoError and FrameNotReady."""
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
        self._program.kill()  # ends the thread's read
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
        message = _next_message(self._program)
        while "going_on" in message:
            self.decoded = message["decoded"]
            message = _next_message(self._program)
        self.decoded = message["decoded"]
        if "end" in message:
            return None
        pixels = np.empty((message["height"], message["width"], 3), np.uint8)
        self._program.read_into(pixels.data.cast("B"))
        height, width = message["size"]
        return SampledFrame(message["time"], message["row"], message["rows"], pixels, (height, width), message["cut"])


def bytes_ahead(width: int, height: int, long_side: int | None = None) -> int:
    """Return the maximum memory of the frames that wait to be taken, each of the size that `Frames` returns."""
    scale = 1.0 if long_side is None else min(1.0, long_side / max(width, height))
    frame = 3 * round(width * scale) * round(height * scale)
    return max(frame, min(MAX_FRAMES_AHEAD * frame, MAX_BYTES_AHEAD))


def decoder_bytes(width: int, height: int) -> int:
    """Return the memory of a process that reads a video with frames of this size."""
    return DECODER_BYTES + DECODER_FRAMES * width * height * 3 // 2


def _run(data: bytes | memoryview, limits: ClipLimits, *, ahead: bool = False, **options: Any) -> ConfinedProcess:
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
    } | options
    return ConfinedProcess(PROGRAM, data, request, often=True, ahead=ahead)


def _next_message(program: ConfinedProcess) -> Mapping[str, Any]:
    try:
        message = program.message()
    except ProcessDied as death:
        raise VideoError("broken", f"decoding it failed: {death}") from death
    if "error" in message:
        raise VideoError(message["error"], message["detail"])
    return message
