"""Bounds of the hardware, without a service: `python -m benchmarks.bounds`, a process of its own that prints one JSON object.

B: forward passes alone on one torch thread, over batch sizes.
P: one process that decodes and infers in a loop, over loops at once, torch threads of each, batch sizes and decode threads.
Both run the service's own decoding and models on the pictures that the load generator sends.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.malloc import keep_freed_memory
from models import bundle
from models.bundle_schema import Preprocess
from models.loading import LoadedModel, load
from server.media import images
from server.settings import Settings

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
ModelPixels = NDArray[np.uint8]
Decode = Callable[[bytes], ModelPixels]
Item = TypeVar("Item")


@dataclass(frozen=True)
class LoopLayout:
    """One way to run the loop."""

    threads: int
    """Torch threads of a loop."""
    batch: int
    loops: int = 1
    """Batches at once, each loop on a Python thread of its own."""
    decoders: int = 0
    """Threads that decode ahead; 0 decodes between forward passes, on the thread that runs them."""


@dataclass(frozen=True)
class Speed:
    layout: LoopLayout
    images_per_second: float


def layouts(kind: Literal["forward", "process"]) -> list[LoopLayout]:
    if kind == "forward":
        return [LoopLayout(1, batch) for batch in BATCH_SIZES]
    cpus = len(os.sched_getaffinity(0))
    powers = [1 << exponent for exponent in range(cpus.bit_length())]
    shapes = sorted({(loops, threads) for loops in powers for threads in (1, max(1, cpus // 2 // loops), cpus // loops)})
    return [
        LoopLayout(threads, batch, loops, decoders)
        for loops, threads in shapes
        for batch in BATCH_SIZES
        for decoders in sorted({0, 1, cpus})
    ]


def decoder(preprocess: Preprocess) -> Decode:
    """Return the gateway's function from an encoded image to pixels at model size."""
    limit = int(Settings.model_fields["max_pixels"].default)
    safe = images.ImageDecoder(limit)

    def decode(picture: bytes) -> ModelPixels:
        with safe.decode(picture) as image:
            return images.to_model_size(image, preprocess, limit)

    return decode


def forward_only(model: LoadedModel, pixels: ModelPixels, layout: LoopLayout, seconds: float) -> float:
    """Images/s of forward passes over ready pixels (N, S, S, 3)."""
    endless = cycle(pixels)
    batches = cycle([np.stack(list(islice(endless, layout.batch))) for _ in range(max(1, len(pixels) // layout.batch))])
    return images_per_second(lambda: infer(model, next(batches)), layout, seconds)


def decode_and_infer(
    forward: Callable[[ModelPixels], object], decode: Decode, pictures: Sequence[bytes], layout: LoopLayout, seconds: float
) -> float:
    """Images/s of decoding and forward passes together, without HTTP or queue. forward: runs the network on (B, S, S, 3)."""
    with ThreadPoolExecutor(max(1, layout.decoders)) as pool:
        decoded: Iterator[ModelPixels] = map(decode, _LockedIterator(cycle(pictures)))
        if layout.decoders:
            decoded = _LockedIterator(_decoded_ahead(pool, decode, pictures, 2 * layout.batch * layout.loops))
        return images_per_second(lambda: forward(np.stack(list(islice(decoded, layout.batch)))), layout, seconds)


class _LockedIterator(Iterator[Item]):
    """An iterator that several threads may share."""

    def __init__(self, source: Iterator[Item]) -> None:
        self._source = source
        self._lock = threading.Lock()

    def __next__(self) -> Item:
        with self._lock:
            return next(self._source)


def _decoded_ahead(pool: ThreadPoolExecutor, decode: Decode, pictures: Sequence[bytes], ahead: int) -> Iterator[ModelPixels]:
    endless = cycle(pictures)
    waiting = deque(pool.submit(decode, picture) for picture in islice(endless, ahead))
    while True:
        yield waiting.popleft().result()
        waiting.append(pool.submit(decode, next(endless)))


def infer(model: LoadedModel, pixels: ModelPixels) -> dict[str, NDArray[Any]]:
    """Run the network without merging: (B, S, S, 3) → its outputs."""
    return model.forward({"pixels": pixels}, {"merge": [0] * model.depth})


def images_per_second(step: Callable[[], object], layout: LoopLayout, seconds: float) -> float:
    """Run `step`, one batch, in as many loops at once as the layout says; whole batches over the time that they took."""

    def loop(_: int) -> float:
        torch.set_num_threads(layout.threads)
        step()
        warm, batches = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - warm) < seconds or not batches:
            step()
            batches += 1
        return batches * layout.batch / elapsed

    with ThreadPoolExecutor(layout.loops) as pool:
        return sum(pool.map(loop, range(layout.loops)))


def off_line_scores(model: LoadedModel, pixels: ModelPixels) -> NDArray[np.float32]:
    """Softmax of every picture, each run alone. (N, classes)"""
    logits = np.concatenate([infer(model, picture[None])["logits"] for picture in pixels])
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: NDArray[np.float32] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the service is compared with; prints one JSON object.")
    parser.add_argument("--bundle", required=True, type=Path)
    parser.add_argument("--pictures", required=True, type=Path, help="a folder of JPEGs")
    parser.add_argument("--dtype", required=True, choices=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=2.0, help="per layout")
    parser.add_argument("--forward", type=json.loads, default=None, help="layouts of B as JSON; all by default")
    parser.add_argument("--process", type=json.loads, default=None, help="layouts of P as JSON; all by default")
    parser.add_argument("--scores", type=Path, help="also write off-line scores (pictures, classes) to this .npy")
    options = parser.parse_args()

    keep_freed_memory()  # as the worker does
    read = bundle.read(options.bundle)
    model = load(read, dtype=getattr(torch, options.dtype), packed=True)
    pictures = [path.read_bytes() for path in sorted(options.pictures.glob("*.jpg"))]
    decode = decoder(read.spec.image_preprocess)
    pixels = np.stack([decode(picture) for picture in pictures])
    if options.scores:
        torch.set_num_threads(1)
        np.save(options.scores, off_line_scores(model, pixels))

    forward = [Speed(layout, forward_only(model, pixels, layout, options.seconds)) for layout in _layouts(options.forward, "forward")]
    process = [
        Speed(layout, decode_and_infer(partial(infer, model), decode, pictures, layout, options.seconds))
        for layout in _layouts(options.process, "process")
    ]
    print(json.dumps({"forward": [asdict(speed) for speed in forward], "process": [asdict(speed) for speed in process]}))


def _layouts(selected: list[dict[str, Any]] | None, kind: Literal["forward", "process"]) -> list[LoopLayout]:
    return layouts(kind) if selected is None else [LoopLayout(**layout) for layout in selected]


if __name__ == "__main__":
    main()
