"""The best plain loop around an ONNX graph, without a service: `python -m benchmarks.onnx_bounds`, which prints one JSON object.

P: one process that decodes and runs ONNX Runtime in a loop, over loops at once, threads of each session, batch sizes, decode threads, and
whether the session's idle threads spin.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.bounds import LoopLayout, ModelPixels, Speed, decode_and_infer, decoder, layouts
from kernels.malloc import keep_freed_memory
from models import bundle
from models.bundle_schema import Preprocess

BATCHES = (1, 4, 8, 32)


@dataclass(frozen=True)
class SessionLayout(LoopLayout):
    spins: bool = False


class SessionLoop:
    """A session for each loop: (B, S, S, 3) → logits."""

    def __init__(self, file: Path, preprocess: Preprocess, layout: SessionLayout) -> None:
        self._file = file
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = layout.threads
        self._options.add_session_config_entry("session.intra_op.allow_spinning", str(int(layout.spins)))
        mean, std = (np.array(values, np.float32) for values in (preprocess.mean, preprocess.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._local = threading.local()

    def __call__(self, pixels: ModelPixels) -> NDArray[np.float32]:
        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = onnxruntime.InferenceSession(self._file, self._options, providers=["CPUExecutionProvider"])
        batch = np.empty((len(pixels), 3, *pixels.shape[1:3]), np.float32)
        for channel in range(3):  # a third of the time of whole arrays
            np.multiply(pixels[..., channel], self._scale[channel], out=batch[:, channel])
            batch[:, channel] += self._shift[channel]
        logits: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: batch})[0]
        return logits


def all_layouts() -> list[SessionLayout]:
    plain = [layout for layout in layouts("process") if layout.batch in BATCHES]
    return [SessionLayout(**asdict(layout), spins=spins) for layout in plain for spins in sorted({False, layout.threads > 1})]


def measure(
    layout: SessionLayout,
    file: Path,
    preprocess: Preprocess,
    decode: Callable[[bytes], ModelPixels],
    pictures: Sequence[bytes],
    seconds: float,
) -> Speed:
    return Speed(layout, decode_and_infer(SessionLoop(file, preprocess, layout), decode, pictures, layout, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a served ONNX graph is compared with; prints one JSON object.")
    parser.add_argument("--graph", required=True, type=Path, help="the ONNX file")
    parser.add_argument("--bundle", required=True, type=Path, help="the bundle that was made of it, for its preparation")
    parser.add_argument("--pictures", required=True, type=Path, help="a folder of JPEGs")
    parser.add_argument("--seconds", type=float, default=2.0, help="per layout")
    parser.add_argument("--layouts", type=json.loads, default=None, help="as JSON; all by default")
    options = parser.parse_args()
    preprocess = bundle.read(options.bundle).spec.image_preprocess
    pictures = [path.read_bytes() for path in sorted(options.pictures.glob("*.jpg"))]
    selected: list[dict[str, Any]] | None = options.layouts
    chosen = all_layouts() if selected is None else [SessionLayout(**layout) for layout in selected]
    decode = decoder(preprocess)
    keep_freed_memory()  # as the worker does
    speeds = [measure(layout, options.graph, preprocess, decode, pictures, options.seconds) for layout in chosen]
    print(json.dumps([asdict(speed) for speed in speeds]))


if __name__ == "__main__":
    main()
