"""Clips for tests, written by PyAV. The grey level of a frame tells which one it is."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
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
    """PNG files, one behind the other, each of its own height and width; the container tells the first one's."""
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
    """The same file, but its header says that it is so long."""
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
