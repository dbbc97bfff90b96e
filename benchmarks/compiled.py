"""Whether compiling a classifier ahead of time is worth it on a CPU: `python -m benchmarks.compiled`.

One merge schedule of a bundle, exported by `torch.export` and compiled by AOTInductor, which needs a C++ compiler; one thread, CPU seconds.
  compiling  seconds until a schedule can run
  ratio      how many times as fast as PyTorch it is, as are ONNX Runtime and merging in compiled loops
  pause      for how long another Python thread of the process stands still while a batch runs: a worker's other slots, its queue and its
             heartbeat do so
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import machine
from kernels.numba_loader import load_compiled_loops
from models.bundle import read
from models.loading import LoadedModel, load
from models.merge_schedule import MergeSchedule
from models.registry import architectures
from models.systems.onnx.classifier_backend import open_classifier
from server.worker.backends import Fused
from server.worker.warmup import sample

EXAMPLES = 4
"""Rows that it is exported with; any batch can run."""


class ExportableClassifier(nn.Module):
    """Arrays of a batch → logits (B, classes)."""

    def __init__(self, loaded: LoadedModel, names: list[str], merge: MergeSchedule) -> None:
        super().__init__()
        self.model = loaded.model
        self._spec, self._names, self._options = loaded.spec, names, {"merge": merge.expand(loaded.depth)}
        forward = architectures()[loaded.spec.architecture].forward(loaded.spec.task)
        assert forward is not None
        self._forward = forward

    def forward(self, *arrays: Tensor) -> Tensor:
        return self._forward(self.model, dict(zip(self._names, arrays, strict=True)), self._options, self._spec.pictures)["logits"]


def compile_ahead(module: ExportableClassifier, arrays: Mapping[str, Any], target: Path) -> Callable[..., Any]:
    examples = tuple(torch.from_numpy(array) for array in arrays.values())
    batch = torch.export.Dim("batch", min=1)
    shapes = {"arrays": tuple({0: batch} for _ in examples)}
    with torch.inference_mode(False), torch.no_grad():
        exported = torch.export.export(module, examples, dynamic_shapes=shapes)
        package = torch._inductor.aoti_compile_and_package(exported, package_path=str(target))
    return torch._inductor.aoti_load_package(package)


def longest_pause(call: Callable[[], Any]) -> float:
    """Seconds between two turns of a thread that wants one every millisecond."""
    worst, ended = 0.0, threading.Event()

    def run() -> None:
        with torch.inference_mode():
            call()
        ended.set()

    thread = threading.Thread(target=run)
    last = time.perf_counter()
    thread.start()
    while not ended.is_set():
        time.sleep(0.001)
        now = time.perf_counter()
        worst, last = max(worst, now - last), now
    thread.join()
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/flags/1.0.0"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=max(Console().width, 120))
    for line in machine.describe().lines():
        console.print(line, highlight=False)
    bundle = read(options.bundle)
    spec, model = bundle.spec, load(bundle, packed=True)
    rung = spec.rung(spec.default_rung) if spec.default_rung else None
    schedule = rung.merge if rung else MergeSchedule.off()
    merge = {"merge": schedule.expand(model.depth)}
    example = sample(spec, EXAMPLES)
    with TemporaryDirectory() as folder:
        started_at = time.perf_counter()
        compiled = compile_ahead(ExportableClassifier(load(bundle), list(example), schedule), example, Path(folder) / "model.pt2")
        console.print(f"compiling took {time.perf_counter() - started_at:.0f} s for one schedule of {spec.id}")
        others = {
            "fused": Fused(model, load_compiled_loops(torch.float32, None)),
            "onnx": open_classifier(bundle, None, "float32", 1, example),
        }
        view = Table(title=f"{spec.id}, rung {rung.name if rung else 'off'}: times as fast as PyTorch")
        for column in ("batch", "eager ms", "compiled", *others, "longest pause ms: eager", "compiled", "onnx"):
            view.add_column(column, justify="right")
        for size in options.sizes:
            arrays = sample(spec, size)
            tensors = [torch.from_numpy(array) for array in arrays.values()]
            calls: dict[str, Callable[[], Any]] = {
                "eager": lambda arrays=arrays: model.forward(arrays, merge),
                "compiled": lambda tensors=tensors: compiled(*tensors),
                **{name: lambda arrays=arrays, other=other: other.forward(arrays, merge) for name, other in others.items()},
            }
            seconds = _round_robin(calls, options.turns)
            eager = seconds["eager"]
            pauses = (f"{longest_pause(calls[name]) * 1000:.0f}" for name in ("eager", "compiled", "onnx"))
            view.add_row(str(size), f"{eager * 1000:.1f}", *(f"{eager / seconds[name]:.2f}" for name in ("compiled", *others)), *pauses)
        console.print(view)


def _round_robin(calls: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """CPU seconds of each, the median."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for turn in range(turns + 1):
            for name, call in sorted(calls.items(), reverse=turn % 2 == 1):
                started_at = time.thread_time()
                call()
                if turn:
                    seconds[name].append(time.thread_time() - started_at)
    return {name: median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
