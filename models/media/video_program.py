"""The process that opens one video: `python -m models.media.video_program`. See `models.media.video`.

It says what the video is, and then, if frames are asked for, sends those that are sampled, upright and as RGB. Frames that nobody asked
for are decoded, since later ones depend on them, but never converted.
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
import av.sidedata.encparams  # these are imported late by PyAV, when no file can be opened any more
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
"""Threads of a decoder. The second one costs half as much CPU again, and gains nothing where a network has the other CPU."""
FULL_NAMES = {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}
"""FFmpeg's names of demuxers for several containers."""
GUESSED_DURATION = frozenset({"mpegvideo"})
"""Containers whose duration FFmpeg guesses from a bit rate."""
DEFAULT_FPS = 25.0
TIME_TOLERANCE_FRAMES = 0.05
"""Share of the time to the next frame by which a time may be rounded, so that the next frame needs not be seen to know which is nearer."""
TIMESTAMP_ROUNDING_S = 0.002
"""Some containers round the times of frames to milliseconds: a stated rate that explains the first and the last one is right."""
TIME_EPSILON_S = 1e-6
"""Times of frames are rounded."""
PROGRESS_EVERY_S = 1.0
"""Long parts of a video may not be asked for."""
MAX_BAD_PACKETS = 5_000
"""A file with more damaged packets than this is given up."""
REFORMATTER = VideoReformatter()
"""Keeps its tables from frame to frame."""
SMOOTH = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
"""How frames are shrunk: a new pixel covers the old ones bilinearly. Rounded as FFmpeg does otherwise they were a grey level darker, enough
for MoveNet to miss somebody now and then."""


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
    upright(VideoFrame(8, 8, "yuv420p"), None, 4)  # libraries import parts of themselves late, when no file can be opened any more
    asked = confined_process.receive_request()
    limits = ProbeLimits(**asked["limits"])
    confined_process.confine()
    try:
        with open_file(os.fdopen(0, "rb"), asked["demuxer"]) as container:
            stream = video_stream(container)
            if asked["numbers"] is not None:
                confined_process.write_message(
                    {"end": True, "decoded": _send_frames_by_index(stream, container, limits, asked["numbers"], asked["rate"])}
                )
            elif asked["rate"] is not None:
                confined_process.write_message({"end": True, "decoded": _send_frames(stream, container, limits, asked)})
            else:
                confined_process.write_message({"info": _probe(container, stream, limits)})
    except MediaRefused as refusal:
        confined_process.write_message({"error": refusal.kind, "detail": str(refusal)})
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        confined_process.write_message({"error": "broken", "detail": _error_text(error)})


def open_file(file: IO[bytes], demuxer: str) -> InputContainer:
    """No other demuxer, no protocol, no file but this one. Raises Refused."""
    options = {"format_whitelist": FULL_NAMES.get(demuxer, demuxer), "protocol_whitelist": "pipe"}
    try:
        return av.open(file, "r", format=demuxer, container_options=options, io_open=_no_other_file, metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise MediaRefused("broken", f"the file is truncated or damaged ({_error_text(error)})") from error


def _no_other_file(*_: Any) -> Any:
    raise PermissionError("a video must not name other files")


def video_stream(container: InputContainer) -> VideoStream:
    """The first that is no cover picture."""
    streams = [stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise MediaRefused("no-video", "no video in it" + (": sound alone" if container.streams.audio else ""))
    stream = streams[0]
    if stream.codec_context is None:
        raise MediaRefused("not-a-video", "of a codec that is not decoded here")
    return stream


def packets(container: InputContainer, streams: Sequence[S]) -> Iterator[Packet[S]]:
    """Yield the packets of some streams, and an empty one of each to flush its decoder.

    Once those are out, PyAV fails by IndexError where packets of a damaged file belonged to streams that its head does not name."""
    with suppress(IndexError):
        yield from cast("Iterator[Packet[S]]", container.demux(streams))


def _probe(container: InputContainer, stream: VideoStream, limits: ProbeLimits) -> dict[str, Any]:
    """From the headers first, so that what is too much is refused at once; then from the packets, which headers may be wrong about."""
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
    _check_seconds(span + 1 / rate, limits)  # the last frame is shown for a while, too
    width, height = size
    return {"width": width, "height": height, "fps": round(rate, 6), "frames": len(times), "duration_s": round(span + 1 / rate, 3)}


def _declared_seconds(container: InputContainer) -> float:
    """Return the length that the head tells. Matroska counts from 0, whenever the first frame is."""
    told = seconds(container.duration, 1 / av.time_base)
    return told - seconds(container.start_time, 1 / av.time_base) if container.format.name == "matroska" else told


def _flush(stream: VideoStream) -> VideoFrame | None:
    try:
        return next(iter(stream.codec_context.decode(None)), None)
    except av.error.FFmpegError:
        return None


def _upright_size(frame: VideoFrame, limits: ProbeLimits) -> tuple[int, int]:
    _check_size(frame.width, frame.height, limits)
    return _upright_shape(frame)[::-1]


def quarter_turns(frame: VideoFrame) -> int:
    """To the left, until it is upright; other angles count as the nearest one."""
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


def _send_frames(stream: VideoStream, container: InputContainer, limits: ProbeLimits, asked: Mapping[str, Any]) -> int:
    """Rows of a grid of `rate` a second, from the first frame on: each shows the frame that is nearest in time. A frame is sent once, with
    the rows that show it; one that no row shows is not converted. Returns how many were decoded."""
    rate, start, end = asked["rate"], asked["start"] or 0.0, asked["end"]
    end_row = None if end is None else _first_row_after(end, rate)
    wanted = (start - TIME_EPSILON_S, np.inf if end is None else end - TIME_EPSILON_S)
    sender, row = _Sender(_first_row_after(start, rate), end_row, wanted, asked["long_side"]), 0
    waiting: tuple[VideoFrame, float] | None = None
    for frame, time in _decode(stream, container, limits):
        sender.decoded += 1
        sender.live()
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
    """Converts frames and sends them."""

    first_row: int
    end_row: int | None
    wanted: tuple[float, float]
    """Seconds from which, and before which, frames are asked for."""
    long_side: int | None
    decoded: int = 0
    """Frames so far."""
    _said: float = field(default_factory=monotonic)
    """When something was said last."""
    _size: tuple[int, int] | None = None
    """Height and width of all frames: those of the first one, upright."""
    _cuts: ShotBoundaryDetector = field(default_factory=ShotBoundaryDetector)

    def live(self) -> None:
        """Say that frames are decoded, where none of them has been asked for in a while."""
        if monotonic() - self._said > PROGRESS_EVERY_S:
            self._said = monotonic()
            confined_process.write_message({"going_on": True, "decoded": self.decoded})

    def send(self, shown: tuple[VideoFrame, float], row: int, end: int) -> None:
        """For those of the rows row..end - 1 that are asked for, if any."""
        first, end = max(row, self.first_row), end if self.end_row is None else min(end, self.end_row)
        frame, time = shown
        if end <= first or not self.wanted[0] <= time < self.wanted[1]:
            return
        self._size = self._size or _upright_shape(frame)
        pixels = upright(frame, self._size, self.long_side)
        where = {"time": round(time, 6), "row": first, "rows": end - first, "cut": self._cuts.before(pixels), "size": self._size}
        self._said = monotonic()
        _write_frame(pixels, where | {"decoded": self.decoded})


def _write_frame(pixels: np.ndarray, where: Mapping[str, Any]) -> None:
    height, width, _ = pixels.shape
    confined_process.write_message({**where, "height": height, "width": width})
    confined_process.write_payload(pixels.data.cast("B"))


def _send_frames_by_index(stream: VideoStream, container: InputContainer, limits: ProbeLimits, numbers: Sequence[int], rate: float) -> int:
    """Frames for rising numbers of a grid of `rate` a second: of the frames around each the nearer one in time, so number n is frame n
    where all frames last equally long. Numbers behind the last frame show that one. Returns how many were decoded."""
    left, decoded, said, size = list(numbers), 0, monotonic(), None
    before: tuple[VideoFrame, float] | None = None

    def send(shown: tuple[VideoFrame, float], count: int) -> None:
        """For the next `count` numbers, if any."""
        nonlocal said
        if not count:
            return
        frame, time = shown
        where = {"time": round(time, 6), "row": left[0], "rows": left[count - 1] + 1 - left[0], "cut": False, "size": size}
        _write_frame(upright(frame, size), where | {"decoded": decoded})
        del left[:count]
        said = monotonic()

    for frame, time in _decode(stream, container, limits):
        size = size or _upright_shape(frame)
        decoded += 1
        place = time * rate
        if before is not None:
            send(before, bisect_left(left, (before[1] * rate + place) / 2))
        send((frame, time), bisect_left(left, place + TIME_TOLERANCE_FRAMES))
        if not left:
            return decoded
        before = frame, time
        if monotonic() - said > PROGRESS_EVERY_S:
            said = monotonic()
            confined_process.write_message({"going_on": True, "decoded": decoded})
    if before is None:
        raise MediaRefused("broken", "no frame of it can be decoded")
    send(before, len(left))
    return decoded


def _frame_interval_s(stream: VideoStream) -> float:
    """Usual seconds from one frame to the next."""
    return 1 / float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)


def _first_row_after(time: float, rate: float) -> int:
    return int(np.ceil(time * rate - TIME_EPSILON_S))


def _decode(stream: VideoStream, container: InputContainer, limits: ProbeLimits) -> Iterator[tuple[VideoFrame, float]]:
    """Frames in the order in which they are shown, with seconds since the first."""
    context = stream.codec_context
    context.options = {"max_pixels": str(limits.pixels)}
    context.thread_type, context.thread_count = "AUTO", THREADS
    step = _frame_interval_s(stream)
    begin, last, count, bad = None, -step, 0, 0
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
            if begin is None:
                begin = stamp or 0.0
            time = last + step if stamp is None else stamp - begin
            last = time if time > last else last + 1e-4
            count += 1
            _check_frames(count, limits)
            _check_seconds(last, limits)
            yield frame, last


def upright(frame: VideoFrame, size: tuple[int, int] | None, long_side: int | None = None) -> np.ndarray:
    """RGB, (h, w, 3), contiguous; its own memory where neither rows are padded nor the frame turned.

    size: height and width of the upright frame, its own by default. long_side: if it is larger than that, it is shrunk."""
    size, turns, way = size or _upright_shape(frame), quarter_turns(frame), None
    if long_side is not None and max(size) > long_side:
        size, way = (max(1, round(size[0] * long_side / max(size))), max(1, round(size[1] * long_side / max(size)))), SMOOTH
    height, width = size[::-1] if turns % 2 else size
    rgb = REFORMATTER.reformat(frame, width, height, format="rgb24", interpolation=way, threads=1)
    plane = rgb.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: rgb.height, : rgb.width * 3]
    pixels = rows.reshape(rgb.height, rgb.width, 3)
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _upright_shape(frame: VideoFrame) -> tuple[int, int]:
    """Height and width, upright."""
    return (frame.width, frame.height) if quarter_turns(frame) % 2 else (frame.height, frame.width)


def _error_text(error: Exception) -> str:
    return (error.strerror if isinstance(error, av.error.FFmpegError) and error.strerror else str(error) or type(error).__name__).strip()


if __name__ == "__main__":
    main()
