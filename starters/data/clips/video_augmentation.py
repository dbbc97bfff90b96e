"""Augmentation of clips: bars, captions, light, noise, blur and codecs."""

from __future__ import annotations

import io
from typing import cast

import av
import cv2
import numpy as np
from av.video.stream import VideoStream

from models.arrays import Float32Array, UInt8Array
from starters.data.clips.render_scene import Viewport

_RATES = (10, 12, 15, 24, 25, 30, 50, 60)
"""Frames per second."""
CODECS = ("libx264", "mpeg4", "libvpx")


def draw_rate(generator: np.random.Generator) -> int:
    return int(generator.choice(_RATES))


def draw_crop(side: int, generator: np.random.Generator) -> Viewport:
    """Draw one of the square crops that the service makes of a wider or taller frame: its middle, or one of its ends."""
    offset = float(generator.choice((-1, 0, 0, 1))) * float(generator.uniform(0.1, 0.9))
    middle = [side / 2, side / 2]
    middle[int(generator.random() < 0.3)] -= offset * side / 2
    return Viewport(side, side, side / 2, (middle[0] - 0.5, middle[1] - 0.5))


def degrade(frames: UInt8Array, generator: np.random.Generator, cutout: UInt8Array) -> UInt8Array:
    """Change the light of frames (T, H, W, 3), add blur, noise, a caption and bars. cutout: the image of the caption."""
    seen = _relight(frames.astype(np.float32), generator)
    if generator.random() < 0.25:
        sigma = float(generator.uniform(0.4, 1.1))
        seen = np.stack([cv2.GaussianBlur(one, (0, 0), sigma) for one in seen])
    if generator.random() < 0.4:
        seen += generator.standard_normal(seen.shape, np.float32) * np.asarray(generator.uniform(1, 9), np.float32)
    pixels = np.clip(seen, 0, 255).astype(np.uint8)
    if generator.random() < 0.1:
        _caption(pixels, cutout, generator)
    if generator.random() < 0.12:
        _bars(pixels, generator)
    return pixels


def _relight(frames: Float32Array, generator: np.random.Generator) -> Float32Array:
    """Change contrast, brightness and tint, in some clips over time, in place."""
    frames *= (generator.uniform(0.75, 1.15, 3) * 0.35 * (1.2 / 0.35) ** generator.random()).astype(np.float32)
    frames += np.asarray(generator.uniform(-25, 40), np.float32)
    if generator.random() < 0.15:
        fade = np.linspace(1, generator.uniform(0.6, 1.4), len(frames), dtype=np.float32)
        frames *= fade[:, None, None, None]
    return frames


def _caption(frames: UInt8Array, cutout: UInt8Array, generator: np.random.Generator) -> None:
    height, width = frames.shape[1:3]
    size = max(4, round(float(generator.uniform(0.1, 0.22)) * height))
    small = cv2.resize(np.ascontiguousarray(cutout), (size, size), interpolation=cv2.INTER_AREA)
    top, left = int(generator.choice((2, height - size - 2))), int(generator.choice((2, width - size - 2)))
    box = frames[:, top : top + size, left : left + size]
    box[...] = np.minimum(box * (255 - small[..., 3:].astype(np.uint16)) // 255 + small[..., :3], 255)


def _bars(frames: UInt8Array, generator: np.random.Generator) -> None:
    height, width = frames.shape[1:3]
    share = float(generator.uniform(0.05, 0.16))
    if generator.random() < 0.7:
        bar = round(share * height)
        frames[:, :bar] = frames[:, height - bar :] = 0
    else:
        bar = round(share * width)
        frames[:, :, :bar] = frames[:, :, width - bar :] = 0


def compress(frames: UInt8Array, generator: np.random.Generator) -> UInt8Array:
    """Compress frames (T, H, W, 3), one by one as JPEG or as a video."""
    if generator.random() < 0.5:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(generator.integers(12, 75))]
        return np.stack([np.asarray(cv2.imdecode(cv2.imencode(".jpg", one, quality)[1], cv2.IMREAD_COLOR), np.uint8) for one in frames])
    codec = CODECS[int(generator.integers(2))]
    back = decode(encode(frames, 30, codec, quality=float(generator.random())))
    return back if len(back) == len(frames) else frames


def encode(frames: UInt8Array, rate: int, codec: str, *, quality: float) -> bytes:
    """Encode frames (T, H, W, 3) of even height and width as a video. quality: from 0, coarse, to 1."""
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


def decode(video: bytes) -> UInt8Array:
    """Decode a video to frames (T, H, W, 3)."""
    with av.open(io.BytesIO(video), "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)])
