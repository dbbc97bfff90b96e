"""Which backend runs a classifier's batches fastest, and what a worker learns of it: `python -m benchmarks.backends`.

Three questions, on one thread, in turns within one run, in CPU seconds: waiting for a busy CPU does not count.
  backends  how many times as fast as PyTorch in float32 the other backends and bfloat16 are, at each rung and batch size
  choice    the arm that a worker settles on, and its speed relative to the fastest arm of its kind (bar: 0.97)
  cold      the first batch of each rung in that worker, relative to the tenth (bar: 1.5)

`--first-minute` starts a service with an empty cache under load from the first second instead, and compares its first minute with the speed
on which it settles (bar: 0.9), and its longest pause between two answers with the settled 99th percentile of latency (bar: 2).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.load import LoadTarget, closed_loop
from benchmarks.service import IMAGE
from kernels.malloc import keep_freed_memory
from models.bundle import Bundle, read
from models.merge_schedule import MergeSchedule
from opsin.cli.shared.temporary_service import temporary_service
from server.worker.backends.candidates import open_all
from server.worker.backends.learned_cache import LearnedCache
from server.worker.backends.learner import HANDICAPS, Arm, kind_of
from server.worker.backends.loading import Loader
from server.worker.backends.runner import Backends
from server.worker.backends.verification import sample
from server.worker.device_layout import Layout

LAYOUT = Layout(torch.device("cpu"), slots=1, threads=1, largest_batch=32)
TENTH = 10

SETTLING_BATCHES = 100
"""Number of batches of each rung and size, after which a worker is asked for its choice."""
FIRST_S, LAST_S = 20.0, 60.0
"""The seconds of the first minute that are compared: a client may wait for the first ones anyway."""
SETTLED_S = 30.0
"""Time at the end of a load, in seconds, in which the service counts as settled."""


@dataclass(frozen=True)
class BackendRow:
    rung: str
    size: int
    seconds: dict[Arm, list[float]]
    """CPU seconds of each turn, by arm."""
    chosen: Arm
    """Arm that a worker settles on."""
    alike: Collection[Arm]
    """Arms of the same kind."""

    def ratio(self, arm: Arm) -> float:
        """Return PyTorch's seconds relative to an arm's, as the median of turns."""
        return median(eager / other for eager, other in zip(self.seconds["eager"], self.seconds[arm], strict=True))

    @property
    def share(self) -> float:
        """Speed of the choice, relative to the fastest arm of its kind."""
        return min(1.0, self.ratio(self.chosen) / max(self.ratio(arm) for arm in self.alike))


def rungs(bundle: Bundle) -> dict[str, tuple[int, ...]]:
    depth = int(bundle.spec.config["depth"])
    schedules = {"off": MergeSchedule.off()} | {rung.name: rung.merge for rung in bundle.spec.ladder}
    return {name: schedule.expand(depth) for name, schedule in schedules.items()}


def learn(bundle: Bundle, cache: Path, sizes: list[int]) -> Backends:
    """Return the backends of a worker that has run batches of each rung and size."""
    backends = Loader(LAYOUT, "auto", LearnedCache(cache), "auto").load(bundle).backends
    assert backends is not None
    open_all(backends)
    for _ in range(SETTLING_BATCHES):
        for merge in rungs(bundle).values():
            for size in sizes:
                backends.forward(sample(bundle.spec, size), {"merge": merge})
    return backends


def cold(bundle: Bundle, worker: Backends, sizes: list[int]) -> dict[tuple[str, int], float]:
    """Return the seconds of the first batch in relation to the tenth's; the median of the third to the tenth stands for that one."""
    found = {}
    for name, merge in rungs(bundle).items():
        for size in sizes:
            arrays = sample(bundle.spec, size)
            times = [_seconds(worker.forward, arrays, merge) for _ in range(TENTH)]
            found[name, size] = times[0] / median(times[2:])
    return found


def compare(bundle: Bundle, worker: Backends, sizes: list[int], turns: int) -> list[BackendRow]:
    rows = []
    for name, merge in rungs(bundle).items():
        schedule, options = worker.schedule(merge), {"merge": merge}
        arms = list(worker.open_arms(options))
        for size in sizes:
            arrays = sample(bundle.spec, size)
            seconds: dict[Arm, list[float]] = {arm: [] for arm in arms}
            for turn in range(turns + 1):
                for arm in arms if turn % 2 else arms[::-1]:  # an arm that runs after a similar one finds warm caches
                    took = _seconds(partial(worker.run_arm, arm), arrays, merge)
                    if turn:
                        seconds[arm].append(took)
            chosen = worker.leader(schedule, size)
            alike = [arm for arm in arms if kind_of(arm, schedule) == kind_of(chosen, schedule)]
            rows.append(BackendRow(name, size, seconds, chosen, alike))
    return rows


def measure_first_minute(bundle_path: Path, clients: int, seconds: float) -> dict[str, float]:
    """Load a service from the first second on. Return images per second by phase, and pauses in seconds."""
    with TemporaryDirectory() as folder:
        bundles, name = Path(folder) / "bundles", bundle_path.parent.name
        bundles.mkdir()
        (bundles / name).symlink_to(bundle_path.parent.resolve())
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OPSIN_")}
        with temporary_service(bundles, environment | {"OPSIN_CACHE": f"{folder}/cache"}) as url:
            target = LoadTarget(f"{url}/v1/classify?model={name}", [IMAGE.read_bytes()], "image/png")
            started = time.monotonic()
            uvloop.run(closed_loop(target, clients, started + seconds))
            target.close()
    answers = sorted((answer.finished - started, answer.finished - answer.intended) for answer in target.answers if answer.status == 200)
    settled = [latency for finished, latency in answers if finished >= seconds - SETTLED_S]
    first = sum(FIRST_S <= finished < LAST_S for finished, _ in answers) / (LAST_S - FIRST_S)
    pause = max(later - earlier for (earlier, _), (later, _) in pairwise(answers))
    speed, p99 = len(settled) / SETTLED_S, quantiles(settled, n=100)[-1]
    return {"first": first, "settled": speed, "ratio": first / speed, "longest_pause": pause, "settled_p99": p99}


def _seconds(forward: Callable[[Mapping[str, Any], Mapping[str, Any]], Any], arrays: Mapping[str, Any], merge: tuple[int, ...]) -> float:
    started_at = time.thread_time()
    forward(arrays, {"merge": merge})
    return time.thread_time() - started_at


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backends", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/flags/1.0.0"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--first-minute", action="store_true", help="load a service with an empty cache from its first second on")
    parser.add_argument("--clients", type=int, default=16, help="of the first minute")
    parser.add_argument("--seconds", type=float, default=150.0, help="of the first minute's load")
    options = parser.parse_args()
    bundle = read(options.bundle)
    if bundle.spec.task != "classify" or not bundle.spec.merges:
        parser.error(f"{bundle.spec.id}: no classifier whose tokens merge; GET /v1/models/{bundle.spec.name} shows its speed")
    console = machine.show()
    content: dict[str, Any] = {}
    if options.first_minute:
        found = content["first_minute"] = measure_first_minute(options.bundle, options.clients, options.seconds)
        print(f"images/s: {found['first']:.1f} in seconds {FIRST_S:g} to {LAST_S:g}, {found['settled']:.1f} settled")
        print(f"first minute at {found['ratio']:.3f} of the settled speed (bar: 0.9)")
        print(
            f"longest pause {found['longest_pause']:.3f} s, {found['longest_pause'] / found['settled_p99']:.2f} of the settled p99 (bar: 2)"
        )
    else:
        content |= _show_backends(bundle, options.sizes, options.turns, console)
    if options.json:
        machine.write_result(parser.prog, content, options.json)
    return 0


def _show_backends(bundle: Bundle, sizes: list[int], turns: int, console: Console) -> dict[str, Any]:
    """Print the table of all arms, and return its figures."""
    torch.set_num_threads(1)
    keep_freed_memory()
    with TemporaryDirectory() as cache:
        worker = learn(bundle, Path(cache), sizes)
        first = cold(bundle, worker, sizes)
        rows = compare(bundle, worker, sizes, turns)
    arms = [arm for arm in HANDICAPS if arm != "eager" and any(arm in row.seconds for row in rows)]
    view = Table(title=f"{bundle.spec.id}: times as fast as PyTorch in float32, and the first batch ÷ the tenth")
    for column in ("rung", "batch", "eager ms", *arms, "worker runs", "of its kind", "first ÷ tenth"):
        view.add_column(column, justify="left" if column in ("rung", "worker runs") else "right")
    for row in rows:
        ratios = [f"{row.ratio(arm):.2f}" if arm in row.seconds else "–" for arm in arms]
        eager_ms, cold_ratio = f"{median(row.seconds['eager']) * 1000:.1f}", f"{first[row.rung, row.size]:.2f}"
        view.add_row(row.rung, str(row.size), eager_ms, *ratios, row.chosen, f"{row.share:.2f}", cold_ratio)
    console.print(view)
    print(f"choice at worst {min(row.share for row in rows):.3f} of the fastest arm of its kind (bar: 0.97)")
    print(f"first batch at worst {max(first.values()):.2f} of the tenth's seconds (bar: 1.5)")
    figures = [{"rung": row.rung, "size": row.size, "seconds": row.seconds, "chosen": row.chosen} for row in rows]
    return {"rows": figures, "cold": [[*key, ratio] for key, ratio in first.items()]}


if __name__ == "__main__":
    sys.exit(main())
