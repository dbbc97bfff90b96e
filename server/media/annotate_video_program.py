"""The process that draws into one video: `python -m server.media.annotate_video_program REQUEST < DRAWINGS-AND-VIDEO`."""

from __future__ import annotations

import io
import json
import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import dist, inf
from typing import Any, cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFont

from models.media import video_program
from models.people.keypoints import BONES
from models.processes import confined_process  # which also imports what PyAV would import too late
from server.media.recordings import LENGTH, PersonAnnotation

TIME_BASE = Fraction(1, 90_000)
NEAR_S = 0.06
"""Maximum time between a frame and the sighting of a person that it shows."""
GAP_S = 0.5
"""Maximum time without a sighting over which a person's position is interpolated."""
DASH_PIXELS = 8.0
"""Length of a dash, and of the gap after it."""
MIN_KEYPOINT_SCORE = 0.2
"""Minimum score of keypoints that are drawn."""
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000", "#000075", "#e6beff")
COPIED_SOUND = frozenset({"aac", "mp3", "opus", "ac3"})
"""Codecs that MP4 can hold."""
AAC_RATES = frozenset({7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000})
"""Sample rates of AAC in hertz."""
USUAL_RATE = 48_000
ENCODERS = (
    ("libx264", 16_384, {"preset": "veryfast", "crf": "23"}),
    ("libvpx-vp9", 65_535, {"crf": "33", "b": "0", "cpu-used": "6", "row-mt": "1"}),
)
"""Encoders in order of preference, each with the maximum side of a frame in pixels."""


@dataclass(frozen=True)
class PersonPosition:
    box: Sequence[float]
    pose: Sequence[float]
    """Empty if there is none."""
    interpolated: bool
    """Whether no one was seen there; drawn dashed."""


@dataclass(frozen=True)
class AnnotatedPerson:
    annotation: PersonAnnotation
    times: Sequence[float]

    def position_at(self, time: float) -> PersonPosition | None:
        """Return the nearest box and pose. Interpolate between two sightings if neither is near; return None if they are too far apart."""
        after = bisect_left(self.times, time)
        neighbours = [i for i in (after - 1, after) if 0 <= i < len(self.times)]
        near = [i for i in neighbours if abs(self.times[i] - time) <= NEAR_S]
        if near:
            return self._place(min(near, key=lambda i: abs(self.times[i] - time)))
        if len(neighbours) < 2 or self.times[after] - self.times[after - 1] > GAP_S:
            return None
        before, behind = self._place(after - 1), self._place(after)
        share = (time - self.times[after - 1]) / (self.times[after] - self.times[after - 1])
        return PersonPosition(_between(before.box, behind.box, share), _between(before.pose, behind.pose, share), interpolated=True)

    def _place(self, index: int) -> PersonPosition:
        return PersonPosition(
            self.annotation.boxes[index][1:], self.annotation.poses[index][1:] if self.annotation.poses else (), interpolated=False
        )

    def lines(self, time: float) -> Sequence[str]:
        return next((lines for start, end, lines in self.annotation.texts if start <= time < end), ())


def main() -> None:
    request = confined_process.receive_request()
    font = ImageFont.load_default(14.0)
    ImageDraw.Draw(Image.new("RGB", (8, 8))).text((0, 0), "0", font=font)
    data = memoryview(os.fdopen(0, "rb").read())
    (length,) = LENGTH.unpack(data[: LENGTH.size])
    people = [
        AnnotatedPerson(PersonAnnotation(**one), [box[0] for box in one["boxes"]])
        for one in json.loads(bytes(data[LENGTH.size : LENGTH.size + length]))
    ]
    confined_process.confine()
    try:
        made = _make(io.BytesIO(data[LENGTH.size + length :]), request, people, font)
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError, video_program.MediaRefused) as error:
        confined_process.write_message({"error": str(error) or type(error).__name__})
        return
    confined_process.write_message({"bytes": len(made)})
    confined_process.write_payload(made)


def _make(file: io.BytesIO, request: Mapping[str, Any], people: Sequence[AnnotatedPerson], font: Any) -> memoryview:
    output = io.BytesIO()
    with (
        video_program.open_file(file, request["demuxer"]) as source,
        av.open(output, "w", format="mp4") as made,
    ):
        picture = video_program.video_stream(source)
        picture.codec_context.options = {"max_pixels": str(request["most_pixels"])}
        sound = AudioTrack.open(source, made)
        streams = [picture] if sound is None else [picture, sound.stream]
        writer: Writer | None = None
        for packet in video_program.packets(source, streams):
            if packet.stream is not picture:
                assert sound is not None
                sound.take(packet, made, writer.start if writer else None)
                continue
            for frame in _frames(packet):
                if writer is None:
                    writer = Writer(made, frame, picture, people, font)
                writer.take(frame)
        if writer is None:
            raise ValueError("no frame of it can be decoded")
        if sound is not None:
            sound.end(made, writer.start)
        writer.end()
    return output.getbuffer()


def _frames(packet: Any) -> Iterator[Any]:
    try:
        yield from packet.decode()
    except av.error.FFmpegError:
        return


class Writer:
    """A writer that draws into frames and encodes them."""

    def __init__(self, made: OutputContainer, first: VideoFrame, source: VideoStream, people: Sequence[AnnotatedPerson], font: Any) -> None:
        self.start = video_program.seconds(first.pts, first.time_base)
        """Time of the first frame in seconds."""
        self._made = made
        self._people = people
        self._font = font
        self._last = -1
        rate = Fraction(source.average_rate or 25).limit_denominator(1000)
        self._step = int(1 / rate / TIME_BASE)
        height, width, _ = video_program.upright(first, None).shape
        self._size = (height, width)
        self._stream = _encoder(made, rate, width + width % 2, height + height % 2)

    def take(self, frame: VideoFrame) -> None:
        time = video_program.seconds(frame.pts, frame.time_base)
        stamp = self._last + self._step if frame.pts is None else int((time - self.start) / TIME_BASE)
        self._last = max(stamp, self._last + 1)
        pixels = self._draw_people(video_program.upright(frame, self._size), self._last * float(TIME_BASE))
        encoded = VideoFrame.from_ndarray(pixels, format="rgb24")
        encoded.pts, encoded.time_base = self._last, TIME_BASE
        self._made.mux(self._stream.encode(encoded))

    def end(self) -> None:
        self._made.mux(self._stream.encode(None))

    def _draw_people(self, pixels: np.ndarray, time: float) -> np.ndarray:
        image = Image.fromarray(pixels)
        canvas = ImageDraw.Draw(image)
        for person in self._people:
            place = person.position_at(time)
            if place is not None:
                _draw(canvas, person.annotation.person, place, person.lines(time), self._font)
        height, width, _ = pixels.shape
        return np.pad(np.asarray(image), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # encoders take even sizes only


def _between(a: Sequence[float], b: Sequence[float], share: float) -> list[float]:
    return [one + share * (other - one) for one, other in zip(a, b, strict=True)]


def _draw(canvas: ImageDraw.ImageDraw, number: int, place: PersonPosition, lines: Sequence[str], font: Any) -> None:
    colour, line = COLOURS[(number - 1) % len(COLOURS)], _dashes if place.interpolated else _line
    x, y, width, height = place.box
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
    for start, end in pairwise(corners):
        line(canvas, start, end, colour)
    points = [place.pose[i : i + 3] for i in range(0, len(place.pose), 3)]
    for a, b in BONES if points else ():
        if min(points[a][2], points[b][2]) >= MIN_KEYPOINT_SCORE:
            line(canvas, points[a][:2], points[b][:2], colour)
    top = max(0.0, y)
    for words in (f"#{number}", *lines):
        left, upper, right, lower = canvas.textbbox((x + 3, top + 2), words, font=font)
        canvas.rectangle((left - 2, upper - 1, right + 2, lower + 1), fill=colour)
        canvas.text((x + 3, top + 2), words, fill="white", font=font)
        top = lower + 1


def _line(canvas: ImageDraw.ImageDraw, start: Sequence[float], end: Sequence[float], colour: str) -> None:
    canvas.line((*start, *end), fill=colour, width=2)


def _dashes(canvas: ImageDraw.ImageDraw, start: Sequence[float], end: Sequence[float], colour: str) -> None:
    length = max(dist(start, end), DASH_PIXELS)
    for at in np.arange(0.0, length, 2 * DASH_PIXELS):
        _line(canvas, _between(start, end, at / length), _between(start, end, min(1.0, (at + DASH_PIXELS) / length)), colour)


def _encoder(made: OutputContainer, rate: Fraction, width: int, height: int) -> VideoStream:
    for name, longest, options in ENCODERS:
        if name in av.codecs_available and max(width, height) <= longest:
            stream = cast(VideoStream, made.add_stream(name, rate=rate, options=options))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.time_base = TIME_BASE
            return stream
    raise ValueError(f"this PyAV has no encoder of H.264 or VP9 for frames of {width} × {height} pixels")


class AudioTrack:
    """The first stream of sound: copied, or encoded as AAC.

    Packets that are dated back, as where recordings were joined, are left out: an MP4 does not take them."""

    def __init__(self, stream: AudioStream, written: AudioStream, *, copied: bool) -> None:
        self.stream = stream
        self._written = written
        self._copied = copied
        self._waiting: list[Any] = []
        """Packets received before the first frame."""
        self._last = -inf
        """Time in seconds of the latest packet or frame that was written."""
        self._form: tuple[str, str, int] | None = None
        self._resampler: AudioResampler | None = None
        """A resampler of frames of one form."""

    @classmethod
    def open(cls, source: InputContainer, made: OutputContainer) -> AudioTrack | None:
        if not source.streams.audio or source.streams.audio[0].codec_context is None:
            return None
        stream = source.streams.audio[0]
        copied = stream.codec_context.name in COPIED_SOUND
        written = (
            made.add_stream_from_template(stream)
            if copied
            else made.add_stream("aac", rate=stream.rate if stream.rate in AAC_RATES else USUAL_RATE)
        )
        return cls(stream, written, copied=copied)

    def take(self, packet: Any, made: OutputContainer, start: float | None) -> None:
        """Write a packet, or keep it until `start`, the time of the first frame in seconds, is known."""
        self._waiting.append(packet)
        if start is None:
            return
        for waiting in self._waiting:
            self._write(waiting, made, start)
        self._waiting = []

    def end(self, made: OutputContainer, start: float) -> None:
        for waiting in self._waiting:
            self._write(waiting, made, start)
        if not self._copied:
            self._encode(None, made)
            made.mux(self._written.encode(None))

    def _write(self, packet: Any, made: OutputContainer, start: float) -> None:
        if not self._copied:
            for frame in _frames(packet):
                if frame.pts is not None and self._advance(video_program.seconds(frame.pts, frame.time_base), start):
                    frame.pts -= int(start / frame.time_base)
                    self._encode(frame, made)
            return
        if packet.dts is None or not self._advance(float(packet.dts * packet.time_base), start):
            return
        offset = int(start / packet.time_base)
        packet.pts, packet.dts = (packet.pts or packet.dts) - offset, packet.dts - offset
        packet.stream = self._written
        made.mux(packet)

    def _advance(self, time: float, start: float) -> bool:
        if time < start or time <= self._last:
            return False
        self._last = time
        return True

    def _encode(self, frame: AudioFrame | None, made: OutputContainer) -> None:
        """Encode a frame, or None to flush."""
        if frame is not None:
            form = (frame.format.name, frame.layout.name, frame.sample_rate)
            if form != self._form:
                written = self._written.codec_context
                self._form, self._resampler = form, AudioResampler("fltp", written.layout, written.rate)
        for part in self._resampler.resample(frame) if self._resampler is not None else ():
            made.mux(self._written.encode(part))


if __name__ == "__main__":
    main()
