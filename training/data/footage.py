"""Changes of frames on their way: bars, captions, light, noise, blur and codecs."""

from __future__ import annotations

import io
from typing import cast

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

from training.data.camera_scenes import Frame
from training.data.stills import Pixels

_RATES = (10, 12, 15, 24, 25, 30, 50, 60)
"""Frames a second."""
Light = npt.NDArray[np.float32]
CODECS = ("libx264", "mpeg4", "libvpx")


def draw_rate(dice: np.random.Generator) -> int:
    return int(dice.choice(_RATES))


def draw_crop(side: int, dice: np.random.Generator) -> Frame:
    """A square as the service cuts it out of a wider or higher frame: the middle of it, or one of its ends."""
    beside = float(dice.choice((-1, 0, 0, 1))) * float(dice.uniform(0.1, 0.9))
    middle = [side / 2, side / 2]
    middle[int(dice.random() < 0.3)] -= beside * side / 2
    return Frame(side, side, side / 2, (middle[0] - 0.5, middle[1] - 0.5))


def recorded(frames: Pixels, dice: np.random.Generator, cutout: Pixels) -> Pixels:
    """Bars, a caption and light over frames (T, H, W, 3), then blur and noise. cutout: what stands still on the screen."""
    seen = _lit(frames.astype(np.float32), dice)
    if dice.random() < 0.25:
        sigma = float(dice.uniform(0.4, 1.1))
        seen = np.stack([cv2.GaussianBlur(one, (0, 0), sigma) for one in seen])
    if dice.random() < 0.4:
        seen += dice.standard_normal(seen.shape, np.float32) * np.asarray(dice.uniform(1, 9), np.float32)
    shown = np.clip(seen, 0, 255).astype(np.uint8)
    if dice.random() < 0.1:
        _caption(shown, cutout, dice)
    if dice.random() < 0.12:
        _bars(shown, dice)
    return shown


def _lit(frames: Light, dice: np.random.Generator) -> Light:
    """Contrast, brightness and tint; in some clips the light changes. In place."""
    frames *= (dice.uniform(0.75, 1.15, 3) * 0.35 * (1.2 / 0.35) ** dice.random()).astype(np.float32)
    frames += np.asarray(dice.uniform(-25, 40), np.float32)
    if dice.random() < 0.15:
        fade = np.linspace(1, dice.uniform(0.6, 1.4), len(frames), dtype=np.float32)
        frames *= fade[:, None, None, None]
    return frames


def _caption(frames: Pixels, cutout: Pixels, dice: np.random.Generator) -> None:
    height, width = frames.shape[1:3]
    size = max(4, round(float(dice.uniform(0.1, 0.22)) * height))
    small = cv2.resize(np.ascontiguousarray(cutout), (size, size), interpolation=cv2.INTER_AREA)
    top, left = int(dice.choice((2, height - size - 2))), int(dice.choice((2, width - size - 2)))
    box = frames[:, top : top + size, left : left + size]
    box[...] = np.minimum(box * (255 - small[..., 3:].astype(np.uint16)) // 255 + small[..., :3], 255)


def _bars(frames: Pixels, dice: np.random.Generator) -> None:
    height, width = frames.shape[1:3]
    share = float(dice.uniform(0.05, 0.16))
    if dice.random() < 0.7:
        bar = round(share * height)
        frames[:, :bar] = frames[:, height - bar :] = 0
    else:
        bar = round(share * width)
        frames[:, :, :bar] = frames[:, :, width - bar :] = 0


def compressed(frames: Pixels, dice: np.random.Generator) -> Pixels:
    """Frames as a codec gives them back, (T, H, W, 3): as JPEG, one by one, or as a video."""
    if dice.random() < 0.5:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(dice.integers(12, 75))]
        return np.stack([np.asarray(cv2.imdecode(cv2.imencode(".jpg", one, quality)[1], cv2.IMREAD_COLOR), np.uint8) for one in frames])
    codec = CODECS[int(dice.integers(2))]
    back = decoded(encoded(frames, 30, codec, quality=float(dice.random())))
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
