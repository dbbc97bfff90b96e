"""Changes of frames on their way: bars, captions, light, noise, blur and codecs."""

from __future__ import annotations

import io
from typing import cast

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

from starters.data.clips.render_scene import Frame
from starters.data.images.package_images import Pixels

_RATES = (10, 12, 15, 24, 25, 30, 50, 60)
"""Frames a second."""
Light = npt.NDArray[np.float32]
CODECS = ("libx264", "mpeg4", "libvpx")


def draw_rate(generator: np.random.Generator) -> int:
    return int(generator.choice(_RATES))


def draw_crop(side: int, generator: np.random.Generator) -> Frame:
    """A square as the service cuts it out of a wider or higher frame: the middle of it, or one of its ends."""
    beside = float(generator.choice((-1, 0, 0, 1))) * float(generator.uniform(0.1, 0.9))
    middle = [side / 2, side / 2]
    middle[int(generator.random() < 0.3)] -= beside * side / 2
    return Frame(side, side, side / 2, (middle[0] - 0.5, middle[1] - 0.5))


def recorded(frames: Pixels, generator: np.random.Generator, cutout: Pixels) -> Pixels:
    """Bars, a caption and light over frames (T, H, W, 3), then blur and noise. cutout: what stands still on the screen."""
    seen = _lit(frames.astype(np.float32), generator)
    if generator.random() < 0.25:
        sigma = float(generator.uniform(0.4, 1.1))
        seen = np.stack([cv2.GaussianBlur(one, (0, 0), sigma) for one in seen])
    if generator.random() < 0.4:
        seen += generator.standard_normal(seen.shape, np.float32) * np.asarray(generator.uniform(1, 9), np.float32)
    shown = np.clip(seen, 0, 255).astype(np.uint8)
    if generator.random() < 0.1:
        _caption(shown, cutout, generator)
    if generator.random() < 0.12:
        _bars(shown, generator)
    return shown


def _lit(frames: Light, generator: np.random.Generator) -> Light:
    """Contrast, brightness and tint; in some clips the light changes. In place."""
    frames *= (generator.uniform(0.75, 1.15, 3) * 0.35 * (1.2 / 0.35) ** generator.random()).astype(np.float32)
    frames += np.asarray(generator.uniform(-25, 40), np.float32)
    if generator.random() < 0.15:
        fade = np.linspace(1, generator.uniform(0.6, 1.4), len(frames), dtype=np.float32)
        frames *= fade[:, None, None, None]
    return frames


def _caption(frames: Pixels, cutout: Pixels, generator: np.random.Generator) -> None:
    height, width = frames.shape[1:3]
    size = max(4, round(float(generator.uniform(0.1, 0.22)) * height))
    small = cv2.resize(np.ascontiguousarray(cutout), (size, size), interpolation=cv2.INTER_AREA)
    top, left = int(generator.choice((2, height - size - 2))), int(generator.choice((2, width - size - 2)))
    box = frames[:, top : top + size, left : left + size]
    box[...] = np.minimum(box * (255 - small[..., 3:].astype(np.uint16)) // 255 + small[..., :3], 255)


def _bars(frames: Pixels, generator: np.random.Generator) -> None:
    height, width = frames.shape[1:3]
    share = float(generator.uniform(0.05, 0.16))
    if generator.random() < 0.7:
        bar = round(share * height)
        frames[:, :bar] = frames[:, height - bar :] = 0
    else:
        bar = round(share * width)
        frames[:, :, :bar] = frames[:, :, width - bar :] = 0


def compressed(frames: Pixels, generator: np.random.Generator) -> Pixels:
    """Frames as a codec gives them back, (T, H, W, 3): as JPEG, one by one, or as a video."""
    if generator.random() < 0.5:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(generator.integers(12, 75))]
        return np.stack([np.asarray(cv2.imdecode(cv2.imencode(".jpg", one, quality)[1], cv2.IMREAD_COLOR), np.uint8) for one in frames])
    codec = CODECS[int(generator.integers(2))]
    back = decoded(encoded(frames, 30, codec, quality=float(generator.random())))
    return back if len(back) == len(frames) else frames


def encoded(frames: Pixels, rate: int, codec: str, *, quality: float) -> bytes:
    """A video of frames (T, H, W, 3) of even height and width. quality: from 0, coarse, to 1."""
    coarse = {"libx264": ("crf", 38 - 20 * quality), "mpeg4": ("qscale", 16 - 13 * quality), "libvpx": ("crf", 50 - 36 * quality)}
    name, value = coarse[codec]
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as made:
        stream = cast(VideoStream, made.add_stream(codec, rate=rate))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        if codec == "mpeg4":
            stream.codec_context.qmin = stream.codec_context.qmax = max(2, round(value))
        else:
            stream.options = {name: str(round(value)), **({"preset": "ultrafast"} if codec == "libx264" else {"b": "1M", "cpu-used": "8"})}
        for one in frames:
            made.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(one), format="rgb24")))
        made.mux(stream.encode())
    return file.getvalue()


def decoded(video: bytes) -> Pixels:
    """→ (T, H, W, 3)."""
    with av.open(io.BytesIO(video), "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)])
