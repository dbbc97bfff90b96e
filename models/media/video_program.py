"""Program that opens one video: `python -m models.media.video_program`. See `models.media.video`.

It sends facts about the video or, if frames are requested, the sampled ones, upright and as RGB. Other frames are decoded, since later ones
depend on them, but not converted.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import IO, Any, TypeVar, cast

import av
import av.sidedata.encparams  # PyAV imports these late, when no file can be opened any more
import av.sidedata.motionvectors
import av.subtitles.codeccontext
import av.subtitles.stream
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from models.media.shot_boundaries import ShotBoundaryDetector
from models.processes import confined_process

S = TypeVar("S", bound=Stream)

THREADS = 2 if (os.cpu_count() or 1) > 2 else 1
"""Number of threads of a decoder. The second one uses half as much CPU again, and gains nothing if a network uses the other CPU."""
FULL_NAMES = {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}
"""FFmpeg's names of demuxers for several containers."""
GUESSED_DURATION = frozenset({"mpegvideo"})
"""Containers whose duration FFmpeg guesses from a bit rate."""
DEFAULT_FPS = 25.0
TIME_TOLERANCE_FRAMES = 0.05
"""Tolerance of rounded times, as a fraction of the time to the next frame: the nearer frame is known without decoding the next one."""
TIMESTAMP_ROUNDING_S = 0.002
"""Tolerance of rates in seconds: some containers round the times of frames to milliseconds, so a declared rate that fits the first and the
last one is right."""
TIME_EPSILON_S = 1e-6
"""Tolerance in seconds of rounded times of frames."""
PROGRESS_EVERY_S = 1.0
"""Seconds between messages while no requested frame is decoded."""
MAX_BAD_PACKETS = 5_000
REFORMATTER = VideoReformatter()
"""Reformatter that keeps its tables between frames."""
SHRINK_INTERPOLATION = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
"""Interpolation of shrunk frames: a new pixel covers the old ones bilinearly. With FFmpeg's default rounding they would be a grey level
darker, enough for MoveNet to miss people now and then."""


class MediaRefused(Exception):
    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class ProbeLimits:
    seconds: float
    frames: int
    pixels: int


def main() -> None:
    upright(VideoFrame(8, 8, "yuv420p"), None, 4)  # imports parts of libraries that are imported late, when no file can be opened any more
    request = confined_process.receive_request()
    limits = ProbeLimits(**request["limits"])
    confined_process.confine()
    try:
        with open_file(os.fdopen(0, "rb"), request["demuxer"]) as container:
            stream = video_stream(container)
            if request["numbers"] is not None:
                confined_process.write_message(
                    {"end": True, "decoded": _send_frames_by_index(stream, container, limits, request["numbers"], request["rate"])}
                )
            elif request["rate"] is not None:
                confined_process.write_message({"end": True, "decoded": _send_frames(stream, container, limits, request)})
            else:
                confined_process.write_message({"info": _probe(container, stream, limits)})
    except MediaRefused as refusal:
        confined_process.write_message({"error": refusal.kind, "detail": str(refusal)})
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        confined_process.write_message({"error": "broken", "detail": _error_text(error)})


def open_file(file: IO[bytes], demuxer: str) -> InputContainer:
    """Open a file with this demuxer and no other, without protocols and further files. Raises MediaRefused."""
    options = {"format_whitelist": FULL_NAMES.get(demuxer, demuxer), "protocol_whitelist": "pipe"}
    try:
        return av.open(file, "r", format=demuxer, container_options=options, io_open=_no_other_file, metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise MediaRefused("broken", f"the file is truncated or damaged ({_error_text(error)})") from error


def _no_other_file(*_: Any) -> Any:
    raise PermissionError("a video must not name other files")


def video_stream(container: InputContainer) -> VideoStream:
    """Return the first stream that is not a cover image. Raises MediaRefused."""
    streams = [stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise MediaRefused("no-video", "no video in it" + (": sound alone" if container.streams.audio else ""))
    stream = streams[0]
    if stream.codec_context is None:
        raise MediaRefused("not-a-video", "of a codec that is not decoded here")
    return stream


def packets(container: InputContainer, streams: Sequence[S]) -> Iterator[Packet[S]]:
    """Yield the packets of some streams, and an empty one of each to flush its decoder.

    After those, PyAV raises IndexError if packets of a damaged file belong to streams that its header does not name.
    """
    with suppress(IndexError):
        yield from cast("Iterator[Packet[S]]", container.demux(streams))


def _probe(container: InputContainer, stream: VideoStream, limits: ProbeLimits) -> dict[str, Any]:
    """Check a video and return its facts: from the headers first, to refuse early, then from the packets, since headers may be wrong."""
    context = stream.codec_context
    _check_size(context.width, context.height, limits)
    if container.format.name not in GUESSED_DURATION:
        _check_seconds(max(_declared_seconds(container), seconds(stream.duration, stream.time_base)), limits)
    _check_frames(stream.frames, limits)
    context.options = {"max_pixels": str(limits.pixels)}
    rate = 1 / _frame_interval_s(stream)
    first, size = None, (0, 0)
    times: list[float] = []
    earliest, latest = np.inf, -np.inf
    bad = 0
    for packet in packets(container, [stream]):
        if packet.size == 0 and packet.pts is None:  # the last one, which flushes the decoder
            continue
        if size == (0, 0):
            try:
                first = first or next(iter(packet.decode()), None)
            except av.error.FFmpegError:
                bad += 1
            if first is not None:
                size = _upright_size(first, limits)
        stamp = packet.pts if packet.pts is not None else packet.dts
        times.append(float(stamp * packet.time_base) if stamp is not None else len(times) / rate)
        earliest, latest = min(earliest, times[-1]), max(latest, times[-1])
        _check_frames(len(times), limits)
        _check_seconds(latest - earliest, limits)
    if first is None:
        flushed = _flush(stream)
        first = flushed
        if first is None:
            raise MediaRefused("broken", "no frame of it can be decoded" if times else "it has no frames")
        size = _upright_size(first, limits)
    span = latest - earliest
    if len(times) > 1 and span > 0:
        mean = (len(times) - 1) / span
        rate = rate if abs(rate / mean - 1) * span <= TIMESTAMP_ROUNDING_S else mean
    _check_seconds(span + 1 / rate, limits)  # the last frame has a duration, too
    width, height = size
    return {"width": width, "height": height, "fps": round(rate, 6), "frames": len(times), "duration_s": round(span + 1 / rate, 3)}


def _declared_seconds(container: InputContainer) -> float:
    """Return the length in the header. Matroska counts from 0, whenever the first frame is."""
    declared = seconds(container.duration, 1 / av.time_base)
    return declared - seconds(container.start_time, 1 / av.time_base) if container.format.name == "matroska" else declared


def _flush(stream: VideoStream) -> VideoFrame | None:
    try:
        return next(iter(stream.codec_context.decode(None)), None)
    except av.error.FFmpegError:
        return None


def _upright_size(frame: VideoFrame, limits: ProbeLimits) -> tuple[int, int]:
    _check_size(frame.width, frame.height, limits)
    return _upright_shape(frame)[::-1]


def quarter_turns(frame: VideoFrame) -> int:
    """Return the number of turns to the left that make a frame upright; other angles count as the nearest one."""
    return round(frame.rotation / 90) % 4


def _check_size(width: int, height: int, limits: ProbeLimits) -> None:
    if width * height > limits.pixels:
        raise MediaRefused(
            "too-much", f"frames of {width} × {height} pixels are above the limit of {limits.pixels} (OPSIN_MAX_VIDEO_PIXELS)"
        )


def _check_seconds(seconds: float, limits: ProbeLimits) -> None:
    if seconds > limits.seconds:
        raise MediaRefused("too-much", f"{seconds:.0f} seconds are above the limit of {limits.seconds:g} (OPSIN_MAX_VIDEO_SECONDS)")


def _check_frames(frames: int, limits: ProbeLimits) -> None:
    if frames > limits.frames:
        raise MediaRefused("too-much", f"more than {limits.frames} frames (OPSIN_MAX_VIDEO_FRAMES)")


def seconds(ticks: int | None, base: Any) -> float:
    return float(ticks * base) if ticks is not None and base else 0.0


def _send_frames(stream: VideoStream, container: InputContainer, limits: ProbeLimits, request: Mapping[str, Any]) -> int:
    """Send frames for rows of a grid of `rate` per second, from the first frame on: each row shows the frame that is nearest in time. A
    frame is sent once, with the rows that show it; one that no row shows is not converted. Returns the number of decoded frames."""
    rate, start, end = request["rate"], request["start"] or 0.0, request["end"]
    end_row = None if end is None else _first_row_after(end, rate)
    span = (start - TIME_EPSILON_S, np.inf if end is None else end - TIME_EPSILON_S)
    sender, row = _Sender(_first_row_after(start, rate), end_row, span, request["long_side"]), 0
    waiting: tuple[VideoFrame, float] | None = None
    for frame, time in _decode(stream, container, limits):
        sender.decoded += 1
        sender.report_progress()
        if waiting is not None:
            until = _first_row_after((waiting[1] + time) / 2, rate)
            sender.send(waiting, row, until)
            row = max(row, until)
        waiting = (frame, time)
        if end_row is not None and row >= end_row:
            return sender.decoded
    if waiting is None:
        raise MediaRefused("broken", "no frame of it can be decoded")
    sender.send(waiting, row, _first_row_after(waiting[1] + _frame_interval_s(stream), rate))
    return sender.decoded


@dataclass
class _Sender:
    first_row: int
    end_row: int | None
    span: tuple[float, float]
    """Start and end of the frames that are sent, in seconds."""
    long_side: int | None
    decoded: int = 0
    _last_message: float = field(default_factory=monotonic)
    _size: tuple[int, int] | None = None
    """Height and width of all frames: those of the first one, upright."""
    _cuts: ShotBoundaryDetector = field(default_factory=ShotBoundaryDetector)

    def report_progress(self) -> None:
        """Report the number of decoded frames if no message has been sent for a while."""
        if monotonic() - self._last_message > PROGRESS_EVERY_S:
            self._last_message = monotonic()
            confined_process.write_message({"going_on": True, "decoded": self.decoded})

    def send(self, timed_frame: tuple[VideoFrame, float], row: int, end: int) -> None:
        """Send a frame for those of the rows row..end - 1 that are requested, if any."""
        first, end = max(row, self.first_row), end if self.end_row is None else min(end, self.end_row)
        frame, time = timed_frame
        if end <= first or not self.span[0] <= time < self.span[1]:
            return
        self._size = self._size or _upright_shape(frame)
        pixels = upright(frame, self._size, self.long_side)
        placement = {"time": round(time, 6), "row": first, "rows": end - first, "cut": self._cuts.is_cut(pixels), "size": self._size}
        self._last_message = monotonic()
        _write_frame(pixels, placement | {"decoded": self.decoded})


def _write_frame(pixels: np.ndarray, fields: Mapping[str, Any]) -> None:
    height, width, _ = pixels.shape
    confined_process.write_message({**fields, "height": height, "width": width})
    confined_process.write_payload(pixels.data.cast("B"))


def _send_frames_by_index(stream: VideoStream, container: InputContainer, limits: ProbeLimits, indices: Sequence[int], rate: float) -> int:
    """Send frames for rising numbers of a grid of `rate` per second: the nearer frame in time, so number n is frame n at a constant rate.
    Numbers after the last frame show that one. Returns the number of decoded frames."""
    left, decoded, last_message, size = list(indices), 0, monotonic(), None
    before: tuple[VideoFrame, float] | None = None

    def send(timed_frame: tuple[VideoFrame, float], count: int) -> None:
        """Send a frame for the next `count` numbers, if any."""
        nonlocal last_message
        if not count:
            return
        frame, time = timed_frame
        placement = {"time": round(time, 6), "row": left[0], "rows": left[count - 1] + 1 - left[0], "cut": False, "size": size}
        _write_frame(upright(frame, size), placement | {"decoded": decoded})
        del left[:count]
        last_message = monotonic()

    for frame, time in _decode(stream, container, limits):
        size = size or _upright_shape(frame)
        decoded += 1
        position = time * rate
        if before is not None:
            send(before, bisect_left(left, (before[1] * rate + position) / 2))
        send((frame, time), bisect_left(left, position + TIME_TOLERANCE_FRAMES))
        if not left:
            return decoded
        before = frame, time
        if monotonic() - last_message > PROGRESS_EVERY_S:
            last_message = monotonic()
            confined_process.write_message({"going_on": True, "decoded": decoded})
    if before is None:
        raise MediaRefused("broken", "no frame of it can be decoded")
    send(before, len(left))
    return decoded


def _frame_interval_s(stream: VideoStream) -> float:
    """Return the mean time in seconds from one frame to the next."""
    return 1 / float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)


def _first_row_after(time: float, rate: float) -> int:
    return int(np.ceil(time * rate - TIME_EPSILON_S))


def _decode(stream: VideoStream, container: InputContainer, limits: ProbeLimits) -> Iterator[tuple[VideoFrame, float]]:
    """Yield frames in display order, with seconds since the first."""
    context = stream.codec_context
    context.options = {"max_pixels": str(limits.pixels)}
    context.thread_type, context.thread_count = "AUTO", THREADS
    step = _frame_interval_s(stream)
    start, last, count, bad = None, -step, 0, 0
    for packet in packets(container, [stream]):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            bad += 1
            if bad > MAX_BAD_PACKETS:
                raise MediaRefused("broken", f"more than {MAX_BAD_PACKETS} packets of it are damaged") from None
            continue
        for frame in frames:
            stamp = seconds(frame.pts, frame.time_base) if frame.pts is not None else None
            if start is None:
                start = stamp or 0.0
            time = last + step if stamp is None else stamp - start
            last = time if time > last else last + 1e-4
            count += 1
            _check_frames(count, limits)
            _check_seconds(last, limits)
            yield frame, last


def upright(frame: VideoFrame, size: tuple[int, int] | None, long_side: int | None = None) -> np.ndarray:
    """Convert a frame to RGB (h, w, 3), contiguous; it shares the frame's memory if rows are not padded and it is not turned.

    size: height and width of the upright frame, None for its own. long_side: a longer side is shrunk to it.
    """
    size, turns, interpolation = size or _upright_shape(frame), quarter_turns(frame), None
    if long_side is not None and max(size) > long_side:
        height, width = (max(1, round(side * long_side / max(size))) for side in size)
        size, interpolation = (height, width), SHRINK_INTERPOLATION
    height, width = size[::-1] if turns % 2 else size
    rgb = REFORMATTER.reformat(frame, width, height, format="rgb24", interpolation=interpolation, threads=1)
    plane = rgb.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: rgb.height, : rgb.width * 3]
    pixels = rows.reshape(rgb.height, rgb.width, 3)
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _upright_shape(frame: VideoFrame) -> tuple[int, int]:
    return (frame.width, frame.height) if quarter_turns(frame) % 2 else (frame.height, frame.width)


def _error_text(error: Exception) -> str:
    return (error.strerror if isinstance(error, av.error.FFmpegError) and error.strerror else str(error) or type(error).__name__).strip()


if __name__ == "__main__":
    main()
