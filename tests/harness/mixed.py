"""Files with streams of several kinds, as cameras, editors and music shops make them."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
from av.stream import Disposition
from PIL import Image

from tests.harness.videos import BASE, grey, play

FRAMES, RATE, SIZE = 20, 10, (48, 64)
"""Of the video: 2 seconds. Its frames are those of `clip`."""
OTHER_FRAMES, OTHER_SIZE = 40, (32, 32)
SOUND = {"mp3": "libmp3lame"}
"""By container; AAC in the others."""
SUBTITLES = {"mp4": ("mov_text", b"\x00\x05hello")}
"""Codec and a line, by container; SRT in the others."""

Fill = Callable[[], None]
"""Writes what belongs into a stream, once all streams are known."""


def mixed(container: str, *kinds: str) -> bytes:
    """A file of these streams in their order: `video`, `other video`, `sound`, `subtitles`, `data`, `font`, `cover`."""
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
