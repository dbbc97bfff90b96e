"""Video files for tests, written by PyAV: the grey level of a frame is its number; and files with several kinds of streams."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.stream import Disposition
from av.video.stream import VideoStream
from PIL import Image

BASE = Fraction(1, 1000)
STEP = 8
"""Grey levels from one frame to the next."""


def clip(
    times: Sequence[float],
    *,
    container: str = "mp4",
    codec: str = "libx264",
    size: tuple[int, int] = (48, 64),
    pixels: str = "yuv420p",
    rotation: int = 0,
    sound: bool | tuple[str, int] = False,
    frames: Sequence[np.ndarray] | None = None,
) -> bytes:
    """Frames at these seconds. size: height and width as stored; rotation: degrees, as a phone notes it; sound: a tone, or its codec and
    rate."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as made:
        rate = 24 if len(times) < 2 else Fraction((len(times) - 1) / (times[-1] - times[0])).limit_denominator(1000)
        stream = cast(VideoStream, made.add_stream(codec, rate=rate))
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        if codec != "mpeg2video" and codec != "mpeg4":
            stream.codec_context.time_base = BASE
        if rotation:
            stream.set_display_rotation(rotation)
        usual = ("aac" if container != "webm" else "libopus", 48_000)
        name, sampling = usual if isinstance(sound, bool) else sound
        tone = made.add_stream(name, rate=sampling) if sound else None
        for number, time in enumerate(times):
            image = frames[number] if frames is not None else grey(number, size)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base = stream.codec_context.time_base or 1 / Fraction(rate)
            frame.pts = round(time / frame.time_base)
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
        if tone is not None:
            play(made, tone, times[-1])
    return file.getvalue()


def pictures(sizes: Sequence[tuple[int, int]], rate: float = 10.0) -> bytes:
    """Write PNG files one after the other, each of its own height and width; the container states those of the first one."""
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as made:
        stream = cast(VideoStream, made.add_stream("png", rate=Fraction(rate)))
        (stream.height, stream.width), stream.pix_fmt = sizes[0], "gray"
        for number, (height, width) in enumerate(sizes):
            png = io.BytesIO()
            Image.new("L", (width, height), 16 + STEP * number).save(png, "PNG")
            packet = av.Packet(png.getvalue())
            packet.stream, packet.time_base, packet.is_keyframe = stream, BASE, True
            packet.pts = packet.dts = round(1000 * number / rate)
            made.mux(packet)
    return file.getvalue()


def sound_alone(seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as made:
        play(made, made.add_stream("aac", rate=48_000), seconds)
    return file.getvalue()


def grey(number: int, size: tuple[int, int]) -> np.ndarray:
    return np.full((*size, 3), 16 + STEP * (number % 28), np.uint8)


def number_of(pixels: np.ndarray) -> int:
    """Which frame it is."""
    return round((float(pixels.mean()) - 16) / STEP)


def every(count: int, rate: float) -> list[float]:
    return [number / rate for number in range(count)]


def with_hours(mp4: bytes, hours: int) -> bytes:
    """Return the same file with this duration in its header."""
    patched = bytearray(mp4)
    (scale,) = struct.unpack_from(">I", patched, patched.index(b"mdhd") + 16)
    at = patched.index(b"stts") + 12  # how many frames follow each other at which distance
    (count,) = struct.unpack_from(">I", patched, at)
    struct.pack_into(">I", patched, at + 4, scale * 3600 * hours // count)  # of the first run, which holds all frames
    return bytes(patched)


def play(made: Any, stream: Any, seconds: float) -> None:
    count = int(seconds * 48_000 / 960) + 1
    for part in range(count):
        samples = (0.2 * np.sin(np.arange(960) / 20)).astype(np.float32)[None].repeat(2, 0)
        layout = "stereo"
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = 48_000, part * 960, Fraction(1, 48_000)
        made.mux(stream.encode(frame))
    made.mux(stream.encode(None))


FRAMES, RATE, SIZE = 20, 10, (48, 64)
"""Number of frames, rate and size of the video of 2 seconds. Its frames are those of `clip`."""
OTHER_FRAMES, OTHER_SIZE = 40, (32, 32)
SOUND = {"mp3": "libmp3lame"}
"""Codec of the sound by container; AAC in the others."""
SUBTITLES = {"mp4": ("mov_text", b"\x00\x05hello")}
"""Codec and a line, by container; SRT in the others."""

Fill = Callable[[], None]
"""Writes what belongs into a stream, once all streams are known."""


def mix(container: str, *kinds: str) -> bytes:
    """Write a file of these streams in their order: `video`, `other video`, `sound`, `subtitles`, `data`, `font`, `cover`."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as made:
        for fill in [ADD[kind](made, container) for kind in kinds]:
            fill()
    return file.getvalue()


def _video(made: Any, size: tuple[int, int], frames: int) -> Fill:
    stream = made.add_stream("libx264", rate=RATE)
    (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"

    def fill() -> None:
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(grey(number, size), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))

    return fill


def _sound(made: Any, container: str) -> Fill:
    stream = made.add_stream(SOUND.get(container, "aac"), rate=48_000)
    return lambda: play(made, stream, FRAMES / RATE)


def _subtitles(made: Any, container: str) -> Fill:
    codec, line = SUBTITLES.get(container, ("subrip", b"hello"))
    return _packet(made, made.add_mux_stream(codec), line)


def _font(made: Any, _container: str) -> Fill:
    made.add_attachment("letters.ttf", "application/x-truetype-font", bytes(100))
    return lambda: None


def _cover(made: Any, container: str) -> Fill:
    png = io.BytesIO()
    Image.new("RGB", (40, 32), (200, 30, 30)).save(png, "PNG")
    if container == "matroska":
        made.add_attachment("cover.png", "image/png", png.getvalue())
        return lambda: None
    stream = made.add_mux_stream("png", width=40, height=32)
    stream.disposition = Disposition.attached_pic
    return _packet(made, stream, png.getvalue())


def _packet(made: Any, stream: Any, content: bytes) -> Fill:
    packet = av.Packet(content)
    packet.stream, packet.time_base, packet.duration, packet.is_keyframe = stream, BASE, 500, True
    packet.pts = packet.dts = 0
    return lambda: made.mux(packet)


ADD: dict[str, Callable[[Any, str], Fill]] = {
    "video": lambda made, _: _video(made, SIZE, FRAMES),
    "other video": lambda made, _: _video(made, OTHER_SIZE, OTHER_FRAMES),
    "sound": _sound,
    "subtitles": _subtitles,
    "data": lambda made, _: _packet(made, made.add_data_stream(), bytes(50)),
    "font": _font,
    "cover": _cover,
}
