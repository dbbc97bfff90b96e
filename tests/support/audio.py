"""Audio files for tests, written by PyAV, or byte by byte where PyAV would refuse."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
INTEGERS, FLOATS = 1, 3
"""Formats of a WAV's samples."""


def tones(seconds: float, rate: int, *hertz: float, level: float = 0.2) -> NDArray[np.float64]:
    """Return sines one after the other: (n,)."""
    times = np.arange(round(seconds * rate)) / rate
    return level * np.sum([np.sin(2 * np.pi * one * times) for one in hertz], axis=0)


def write_file(channels: NDArray[Any], rate: int, container: str, codec: str) -> bytes:
    """Return samples (channels, n) as a file."""
    file = io.BytesIO()
    layout = LAYOUTS[len(channels)]
    with av.open(file, "w", format=container) as made:
        stream = made.add_stream(codec, rate=rate)
        stream.codec_context.layout = layout
        if codec == "wmav2":
            stream.codec_context.bit_rate = 128_000
        if codec == "vorbis":
            stream.codec_context.options = {"strict": "experimental"}
        for start in range(0, channels.shape[1], 960):
            part = np.ascontiguousarray(channels[:, start : start + 960].T, np.float32)
            frame = av.AudioFrame.from_ndarray(part.reshape(1, -1), format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    return file.getvalue()


def film(container: str, codec: str, *, video_s: float, sound_s: float, pause_s: float = 0.0, lasts_s: float = 2.0) -> bytes:
    """Encode a video and a tone of one second that start at these seconds.

    Layouts differ: Opus and AAC have their own rates. pause_s: seconds without packets of sound in the middle of the tone;
    lasts_s: of the video.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container) as made:
        seen = cast(VideoStream, made.add_stream("libvpx" if container == "webm" else "mpeg4", rate=10))
        seen.height, seen.width, seen.pix_fmt = 48, 64, "yuv420p"
        audible = made.add_stream(codec, rate=48_000)
        audible.codec_context.layout = "mono"
        for number in range(round(10 * lasts_s)):
            image = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 128, np.uint8), format="rgb24")
            image.pts, image.time_base = round(10 * video_s) + number, Fraction(1, 10)
            made.mux(seen.encode(image))
        made.mux(seen.encode(None))
        samples = tones(1.0, 48_000, 440.0).astype(np.float32)
        for start in range(0, len(samples), 960):
            part = av.AudioFrame.from_ndarray(samples[None, start : start + 960], format="flt", layout="mono")
            start_at = sound_s + (pause_s if start >= 24_000 else 0.0)
            part.sample_rate, part.pts, part.time_base = 48_000, round(48_000 * start_at) + start, Fraction(1, 48_000)
            made.mux(audible.encode(part))
        made.mux(audible.encode(None))
    return file.getvalue()


def wav(samples: NDArray[Any], rate: int, *, says_bytes: int | None = None) -> bytes:
    """Return samples (n,) or (n, channels) as they are: integers of 16 bits, or floats. says_bytes: the length in the header."""
    rows = samples if samples.ndim == 2 else samples[:, None]
    channels, width = rows.shape[1], rows.dtype.itemsize
    kind = FLOATS if rows.dtype.kind == "f" else INTEGERS
    data = rows.astype(rows.dtype.newbyteorder("<")).tobytes()
    size = len(data) if says_bytes is None else says_bytes
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * width, channels * width, 8 * width)
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(2**32 - 1, len(head) + size)) + head + data


def tag(sound: bytes, picture: bytes) -> bytes:
    """Prepend an ID3v2.3 tag that holds a cover."""
    content = b"\0image/png\0\x03\0" + picture
    frame = b"APIC" + struct.pack(">I", len(content)) + b"\0\0" + content
    size = len(frame)
    return b"ID3\x03\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + frame + sound
