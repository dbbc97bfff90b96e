"""Every figure that docs/gpu.md wants, in one run of at most 30 minutes: `python -m benchmarks.gpu`.

Prints sentences for docs/gpu.md and rows for docs/claims.yaml, to be committed with the name of the card. `--device cpu --quick` only shows
that it runs: its figures say that they are a CPU's.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml

from benchmarks import bounds, machine, merging, reference, restarts, service
from benchmarks.bounds import LoopLayout
from benchmarks.serving import burst
from kernels.devices import half_format, select_device
from models.bundle import Bundle
from models.loading import LoadedModel, load
from opsin import Client

GIB = 2**30
STEPS = 50
PAGE = "docs/gpu.md"


@dataclass(frozen=True)
class GpuPlan:
    merging: Sequence[str]
    """Networks."""
    batch: int
    """Size of the largest batch."""
    seconds: float
    """Duration of each measurement."""
    starts: int
    clients: Sequence[int]
    inpaintings: int
    """Number of inpaintings at the same time."""


FULL = GpuPlan(("B/16", "L/16"), batch=128, seconds=5.0, starts=3, clients=(32, 64, 128), inpaintings=32)
QUICK = GpuPlan(("Ti/16",), batch=8, seconds=1.0, starts=1, clients=(8,), inpaintings=4)


@dataclass(frozen=True)
class GpuFigure:
    title: str
    sentence: str


def measure(plan: GpuPlan, device: torch.device, folder: Path) -> Iterator[GpuFigure]:
    half = half_format(device)
    yield from merging_speeds(plan, device, half)
    starters = Path(__file__).parents[1] / "bundles"
    yield start_times(plan, device, starters, folder)
    model = reference.make_bundle(folder / "bundles")
    reference.write_pictures(folder / "pictures")
    pictures = [path.read_bytes() for path in sorted((folder / "pictures").iterdir())]
    decode = bounds.decoder(model.spec.image_preprocess)
    pixels = np.stack([decode(picture) for picture in pictures])
    rates = {}
    for dtype in ("float32", half):
        rates[dtype], peak = forward_passes(load_in(model, dtype, device), pixels, plan, device)
        batch = f"at a batch of {plan.batch}, with at most {peak / GIB:.2f} GiB"
        yield GpuFigure(f"Forward passes of ViT-S/16 in {dtype}", f"ViT-S/16 runs {rates[dtype]:,.0f} images/s in {dtype} {batch}.")
    dtype = max(rates, key=rates.__getitem__)
    forward = partial(bounds.infer, load_in(model, dtype, device))
    layouts = [LoopLayout(1, batch, loops, os.cpu_count() or 1) for batch in (8, 32, plan.batch) for loops in (1, 2)]

    def bare_loop() -> float:
        return max(bounds.decode_and_infer(forward, decode, pictures, layout, plan.seconds) for layout in layouts)

    before = bare_loop()
    with service.running(folder / "bundles", device=device.type, dtype=dtype) as url:
        options = ["--warm", plan.seconds, "--seconds", 2 * plan.seconds]
        served = max(
            burst(url, reference.NAME, folder / "pictures", ["--clients", clients, *options]).per_second for clients in plan.clients
        )
    loop = (before + bare_loop()) / 2
    yield GpuFigure(
        "Images/s of the service ÷ the best loop of decoding and inference in one process",
        f"The service answers {served:,.0f} images/s with ViT-S/16 in {dtype}, {served / loop:.2f} of those of a bare loop.",
    )
    yield inpainting(plan, device, starters)


def merging_speeds(plan: GpuPlan, device: torch.device, half: str) -> Iterator[GpuFigure]:
    for size in plan.merging:
        r = merging.SIZES[size][2]
        run = merging.MergingRun(size, half, r, plan.batch, threads=1, pairs=9, fused=False, device=str(device))
        timing = merging.measure(run)
        yield GpuFigure(
            f"Speed of ViT-{size} with {r} tokens merged in each block, relative to merging off, and the predicted speed",
            f"Merging {r} tokens in each block makes ViT-{size} {timing.ratio:.2f}× as fast in {half} at a batch of {plan.batch}, "
            f"{100 * timing.share:.0f} % of what the operation count predicts.",
        )


def load_in(model: Bundle, dtype: str, device: torch.device) -> LoadedModel:
    return load(model, device=device, dtype=getattr(torch, dtype), packed=True)


def forward_passes(model: LoadedModel, pixels: bounds.ModelPixels, plan: GpuPlan, device: torch.device) -> tuple[float, int]:
    """Return images/s at the largest batch, and the largest memory in bytes: PyTorch's on a GPU, on a CPU that of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rate = bounds.forward_only(model, pixels, LoopLayout(1, plan.batch), plan.seconds)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rate, peak


def start_times(plan: GpuPlan, device: torch.device, starters: Path, folder: Path) -> GpuFigure:
    caches = [folder / f"cache-{number}" for number in range(plan.starts)]
    cold, warm = (statistics.median(restarts.first_answer(starters, cache, device.type) for cache in caches) for _ in range(2))
    return GpuFigure(
        "From `opsin serve` to the first classification, with an empty and with a filled cache",
        f"With all starters, the first answer comes {cold:.1f} s after `opsin serve` with an empty `OPSIN_CACHE` and {warm:.1f} s with a "
        "filled one.",
    )


def inpainting(plan: GpuPlan, device: torch.device, starters: Path) -> GpuFigure:
    with service.running(starters, device=device.type) as url, Client(url, timeout=300) as client:

        def seconds(count: int) -> float:
            started = time.perf_counter()
            with ThreadPoolExecutor(count) as pool:
                for one in [
                    pool.submit(client.inpaint, restarts.DRAWING, restarts.HOLE, method="network", steps=STEPS) for _ in range(count)
                ]:
                    one.result()
            return time.perf_counter() - started

        seconds(plan.inpaintings)  # what happens only once
        single, batch = seconds(1), seconds(plan.inpaintings)
    return GpuFigure(
        "Steps of inpainting",
        f"An inpainting of {STEPS} steps takes {single:.2f} s alone; {plan.inpaintings} at once take {batch:.2f} s, "
        f"{plan.inpaintings * STEPS / batch:,.0f} steps/s.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it runs")
    options = parser.parse_args()
    try:
        device = select_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    console = machine.show()
    name = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    described = f"{name}, CUDA {torch.version.cuda}; torch {torch.__version__}"
    rows = []
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as folder:
        for figure in measure(QUICK if options.quick else FULL, device, Path(folder)):
            sentence = f"On the CPU, not a GPU: {figure.sentence}" if name == "cpu" else figure.sentence
            console.print(f"- {sentence}", highlight=False, soft_wrap=True)
            command = f"python -m benchmarks.gpu{' --device cpu' * (name == 'cpu')}{' --quick' * options.quick}"
            today = datetime.now(UTC).date()
            key = name.lower().replace(" ", "-")
            rows.append({"what": figure.title, "quotes": [sentence], "pages": [PAGE], "command": command, "machine": key, "date": today})
    print(yaml.safe_dump({"machines": {key: described}, "claims": rows}, sort_keys=False, allow_unicode=True, width=1000))


if __name__ == "__main__":
    main()
