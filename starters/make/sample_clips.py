"""Make samples of camera moves, with thumbnails: `python -m starters.make.sample_clips server/playground/samples`.

The photographs are none that the starter for clips is trained on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from models.arrays import UInt8Array
from starters.data.clips.camera_paths import Stage, draw_path
from starters.data.clips.render_scene import CameraScene, Plane, Viewport, render
from training.data.packages import DebianPackage, obtain
from training.errors import exit_code

PHOTOGRAPHS = DebianPackage(
    name="budgie-backgrounds", version="3.0-1", sha256="b91c2d5209558bc11d8d3a161f22a608857e3f8c735980cfab0d6650b03014ca"
)
"""CC0-1.0."""
_FRAME = Viewport(width=320, height=180, half=90, middle=(159.5, 89.5))
_RATE, _SECONDS = 25, 2.4
_THUMBNAIL = (128, 72)
_WIDTH = 1280
"""Width in pixels that photographs are resized to."""


@dataclass(frozen=True)
class Sample:
    name: str
    photograph: str
    move: str
    visible: float
    """Share of the photograph's height that the first frame shows."""
    middle: tuple[float, float]
    """Centre of the first frame, as shares of the photograph's width and height."""
    seed: int
    """Seed of speed, easing and tremble."""


SAMPLES = (
    Sample("colosseum", "roman-colosseum.jpg", "pan right", visible=0.6, middle=(0.35, 0.5), seed=6),
    Sample("otters", "oakland-zoo-otters.jpg", "zoom in", visible=0.9, middle=(0.5, 0.5), seed=1),
    Sample("lake", "lake-sherburne.jpg", "shake", visible=0.6, middle=(0.5, 0.5), seed=0),
)


def frames_of(sample: Sample, cache: Path) -> UInt8Array:
    """Render a sample: (T, H, W, 3). Raises DataError."""
    with Image.open(obtain(PHOTOGRAPHS, cache) / "usr/share/backgrounds/budgie" / sample.photograph) as opened:
        image = opened.convert("RGB").resize(
            (_WIDTH, round(_WIDTH * opened.height / opened.width)), Image.Resampling.BICUBIC, reducing_gap=3.0
        )
    stage = Stage(lens=1.6, slides=0.0, distance=1.0, ahead=0.3, widest_turn=0.6, farthest_slide=0.0)
    middle = (sample.middle[0] * image.width, sample.middle[1] * image.height)
    ground = Plane(np.array(image), sample.visible * image.height * stage.lens / 2, middle)
    times = np.arange(round(_SECONDS * _RATE)) / _RATE
    path = draw_path(sample.move, times, _SECONDS, stage, np.random.default_rng(sample.seed))
    return render(CameraScene(ground, np.eye(3, dtype=np.float32), (), stage), path, times, _FRAME)


def write(frames: UInt8Array, file: Path) -> None:
    """Write an MP4 that browsers play."""
    with av.open(str(file), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=_RATE, options={"crf": "30", "preset": "veryslow"})
        stream.height, stream.width, stream.pix_fmt = _FRAME.height, _FRAME.width, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m starters.make.sample_clips", description="Write small videos of camera moves, with thumbnails."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(".cache/data"), help="downloaded packages (default: %(default)s)")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _write_all(options.folder, options.cache), options.folder)


def _write_all(folder: Path, cache: Path) -> None:
    for sample in SAMPLES:
        frames = frames_of(sample, cache)
        write(frames, folder / f"{sample.name}.mp4")
        thumbnail = Image.fromarray(frames[len(frames) // 2]).resize(_THUMBNAIL).quantize(64)
        thumbnail.save(folder / f"{sample.name}.png", optimize=True)
        print(f"wrote {folder / sample.name}.mp4 and .png")


if __name__ == "__main__":
    sys.exit(main())
