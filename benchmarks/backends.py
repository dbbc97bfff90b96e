"""Which backend runs a classifier's batches fastest, and how cold a rung's first batch is: `python -m benchmarks.backends`.

Three questions, on one thread, in turns within one run, in CPU seconds: waiting for a busy CPU does not count.
  backends  how many times as fast as PyTorch alone it is with merging in compiled loops, and ONNX Runtime in float32 and in int8, at each
            rung and batch size
  choice    what a worker would choose, and how much slower than PyTorch that is at worst (bar: 1.02)
  cold      the first batch of each rung in a worker that is warm, in relation to the tenth (bar: 1.5)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from kernels.malloc import keep_freed_memory
from kernels.numba_loader import load_compiled_loops
from models.bundle import Bundle, read
from models.loading import load
from models.merge_schedule import MergeSchedule
from models.systems.onnx.classifier_backend import open_classifier
from server.scheduler.scheduler import Scheduler
from server.scheduler.slots import Slots
from server.scheduler.step_times import StepTimes
from server.worker.backends.runner import Backends, Fused
from server.worker.background_tuning import Tuner, TunerTimings
from server.worker.device_layout import Layout
from server.worker.measurement_cache import Measurements
from server.worker.warmup import Loader, sample

LAYOUT = Layout(torch.device("cpu"), slots=1, threads=1, largest_batch=32)
TENTH = 10

Forward = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]


@dataclass(frozen=True)
class BackendRow:
    rung: str
    size: int
    seconds: dict[str, list[float]]
    """CPU seconds of each turn, by backend."""
    chosen: str
    """Backend that a warm worker chooses; its seconds are under `worker`."""

    def ratio(self, backend: str) -> float:
        """PyTorch's seconds in relation to a backend's, the median of turns."""
        return median(eager / other for eager, other in zip(self.seconds["eager"], self.seconds[backend], strict=True))


def rungs(bundle: Bundle) -> dict[str, tuple[int, ...]]:
    depth = int(bundle.spec.config["depth"])
    schedules = {"off": MergeSchedule.off()} | {rung.name: rung.merge for rung in bundle.spec.ladder}
    return {name: schedule.expand(depth) for name, schedule in schedules.items()}


def warm_worker(bundle: Bundle, cache: Path) -> Backends:
    """Return the backends in the state that a worker has some time after its start."""
    loader, idle = Loader(LAYOUT, "float32", Measurements(cache), "auto"), Slots(Scheduler(1, lambda bucket: StepTimes(1)))
    warm = loader.measure(bundle)
    tuner = Tuner(loader, idle, timings=TunerTimings(head_start=0.0))
    tuner.loaded(bundle, warm)
    while tuner.tuning:
        tuner.look([bundle.spec.id])
    assert warm.backends is not None
    return warm.backends


def cold(bundle: Bundle, worker: Backends, sizes: list[int]) -> dict[tuple[str, int], float]:
    """Seconds of the first batch in relation to the tenth's; the median of the third to the tenth stands for that one."""
    found = {}
    for name, merge in rungs(bundle).items():
        for size in sizes:
            arrays = sample(bundle.spec, size)
            times = [_seconds(worker.forward, arrays, merge) for _ in range(TENTH)]
            found[name, size] = times[0] / median(times[2:])
    return found


def compare(bundle: Bundle, worker: Backends, sizes: list[int], turns: int) -> list[BackendRow]:
    two = sample(bundle.spec, 2)
    model = load(bundle)
    forwards: dict[str, Forward] = {
        "eager": model.forward,
        "fused": Fused(model, load_compiled_loops(torch.float32, None)).forward,
        "onnx": open_classifier(bundle, None, "float32", 1, two).forward,
        "int8": open_classifier(bundle, None, "int8", 1, two).forward,
        "worker": worker.forward,
    }
    rows = []
    for name, merge in rungs(bundle).items():
        for size in sizes:
            arrays = sample(bundle.spec, size)
            seconds: dict[str, list[float]] = {backend: [] for backend in forwards}
            for turn in range(turns + 1):
                for backend, forward in sorted(forwards.items(), reverse=turn % 2 == 1):  # who runs after a sibling finds warm caches
                    took = _seconds(forward, arrays, merge)
                    if turn:
                        seconds[backend].append(took)
            choice = worker.choose(size, {"merge": merge})
            skipped = "" if any(choice.schedule) or not any(merge) else ", off"
            rows.append(BackendRow(name, size, seconds, f"{choice.backend}{skipped}"))
    return rows


def _seconds(forward: Forward, arrays: Mapping[str, Any], merge: tuple[int, ...]) -> float:
    started_at = time.thread_time()
    forward(arrays, {"merge": merge})
    return time.thread_time() - started_at


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backends", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/flags/1.0.0"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    bundle = read(options.bundle)
    if bundle.spec.task != "classify" or not bundle.spec.merges:
        parser.error(f"{bundle.spec.id}: no classifier whose tokens merge; GET /v1/models/{bundle.spec.name} shows its speed")
    torch.set_num_threads(1)
    keep_freed_memory()
    console = Console(width=max(Console().width, 120))
    for line in machine.describe().lines():
        console.print(line, highlight=False)
    with TemporaryDirectory() as cache:
        worker = warm_worker(bundle, Path(cache))
        first = cold(bundle, worker, options.sizes)
        rows = compare(bundle, worker, options.sizes, options.turns)
    view = Table(title=f"{bundle.spec.id}: times as fast as PyTorch, and the first batch ÷ the tenth")
    for column in ("rung", "batch", "eager ms", "fused", "onnx", "int8", "worker runs", "worker", "first ÷ tenth"):
        view.add_column(column, justify="left" if column in ("rung", "worker runs") else "right")
    for row in rows:
        ratios = {backend: f"{row.ratio(backend):.2f}" for backend in ("fused", "onnx", "int8", "worker")}
        eager_ms, cold_ratio = f"{median(row.seconds['eager']) * 1000:.1f}", f"{first[row.rung, row.size]:.2f}"
        fast = (ratios["fused"], ratios["onnx"], ratios["int8"])
        view.add_row(row.rung, str(row.size), eager_ms, *fast, row.chosen, ratios["worker"], cold_ratio)
    console.print(view)
    print(f"worker at worst {1 / min(row.ratio('worker') for row in rows):.3f} of PyTorch's seconds (bar: 1.02)")
    print(f"first batch at worst {max(first.values()):.2f} of the tenth's seconds (bar: 1.5)")
    if options.json:
        figures = [{"rung": row.rung, "size": row.size, "seconds": row.seconds, "chosen": row.chosen} for row in rows]
        content = {"machine": machine.describe().to_json(), "rows": figures, "cold": [[*key, ratio] for key, ratio in first.items()]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
