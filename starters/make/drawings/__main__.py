"""Write the samples: two captures with depth, a clip of two figures, and its first frames, which workers warm up with."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from starters.make.drawings.captures import OBJECTS, capture
from starters.make.drawings.figures import HEIGHT, RATE, THUMBNAIL, WIDTH, frame, frames

SAMPLES = Path("server/playground/samples")
WARM_UP, WARM_UP_FRAMES = Path("server/tasks/sample.mp4"), 2
"""First frames of the clip, which `server.tasks.actions` reads."""


def main() -> None:
    for name in OBJECTS:
        view = capture(name)
        Image.fromarray(view.image).save(SAMPLES / f"{name}.png", optimize=True)
        Image.fromarray(view.depth).save(SAMPLES / f"{name}-depth.png", optimize=True)
    Image.fromarray(frame(0)[THUMBNAIL]).save(SAMPLES / "figures.png", optimize=True)
    write_clip(SAMPLES / "figures.mp4", frames())
    write_clip(WARM_UP, islice(frames(), WARM_UP_FRAMES))


def write_clip(path: Path, images: Iterable[NDArray[np.uint8]]) -> None:
    with av.open(path, "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE), options={"crf": "24", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    main()
