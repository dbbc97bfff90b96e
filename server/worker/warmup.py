"""Loading a bundle in the form that was measured fastest, and measuring: which number format, which backends, how long batches take.

A bundle that nobody has measured here serves at once, by PyTorch in float32; `Rechecks` measures it while it serves.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from models.bundle import Bundle, BundleError, BundleSpec
from models.layers.steps import State
from models.loading import LoadedModel, load, not_served
from models.merge_schedule import MergeSchedule
from models.registry import architectures
from server.scheduler.step_times import ALMOST, ALMOST_STEPS, StepTimes
from server.worker.backend_times import Backend, BackendTimes, Schedule
from server.worker.backends import Backends, BackendSetting
from server.worker.executors import OneShot, check
from server.worker.layout import Layout
from server.worker.measurements import Conditions, Format, Measured, Measurements
from server.worker.model_memory import ModelMemory
from server.worker.samples import Run, per_block, sample, see_usual, started, usual_schedule
from server.worker.stepwise import Stepwise

PROBE_SECONDS = 4.0
"""How long the batch sizes of one bundle may be measured, beyond the batch that is running then."""
DTYPE_SECONDS = 1.0
"""The same for one number format."""
DTYPE_BATCH = 4
LONGEST_BATCH = 1.0
"""Seconds of a batch that is run unasked: a request that comes meanwhile shares the device with it."""
CLEARLY_FASTER = 0.9
"""bfloat16 costs a little accuracy: it must take at most this share of float32's time."""
REPEATS = 3
SLOW_TO_OPEN: frozenset[Backend] = frozenset({"fused"})
"""Backends that compile for seconds the first time: `Tuning` opens them, while nothing runs."""
FORMATS: dict[Format, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GRAPH_FORMATS: dict[Backend, str] = {"onnx": "float32", "int8": "int8"}
"""Formats of the backends that have weights of their own."""


@dataclass(frozen=True)
class Warm:
    """A bundle that is ready to serve."""

    executor: OneShot | Stepwise
    steps: StepTimes
    dtype: torch.dtype
    measured: Measured
    backends: Backends | None = None
    """What runs its batches; None for jobs of several steps."""

    def format(self, size: int) -> tuple[str, float | None]:
        """The number format of usual batches of `size`, and the largest difference between warm-up's answers in it and in float32."""
        backend = self.backends.usual(size) if self.backends is not None else "eager"
        if self.backends is not None and backend in GRAPH_FORMATS:
            return GRAPH_FORMATS[backend], self.backends.difference(backend)
        return self.measured.dtype, self.measured.max_difference


def warm_up(
    bundle: Bundle, layout: Layout, dtype: str, kept: Measurements, backend: BackendSetting = "eager", memory: ModelMemory | None = None
) -> Warm:
    """Load `bundle`. `dtype` is `auto`, `float32` or `bfloat16`. PyTorch alone is ready: `Tuning` opens the other backends.

    What `kept` knows runs as it was measured and has been seen to run. Anything else shows in one batch that it does. Raises BundleError.
    """
    reason = not_served(bundle.spec)
    if reason is not None:
        raise BundleError(reason)
    measured = kept.find(Conditions.of(bundle.spec, layout, dtype, backend))
    known = measured is not None
    if measured is None:
        measured = Measured.nothing(_told_format(bundle.spec, dtype) or "float32", layout.largest_batch)
    model = load(bundle, device=layout.device, dtype=FORMATS[measured.dtype])
    backends = _backends(bundle, model, layout, backend, kept, measured.backend_times(), memory)
    usual = measured.usual
    if model.steps is not None and usual is None:
        usual = see_usual(model, layout, run_at_once)
    elif model.steps is None and not known:
        _run(model, replace(layout, slots=1), 1, usual_schedule(model.spec), run_at_once, backends)
    return _warm(model, backends, layout, msgspec.structs.replace(measured, usual=usual))


def measure_again(
    bundle: Bundle,
    layout: Layout,
    dtype: str,
    kept: Measurements,
    backend: BackendSetting = "eager",
    memory: ModelMemory | None = None,
    run: Run | None = None,
    slots: int | None = None,
) -> Warm:
    """Load `bundle` in the form that is fastest now, and keep what was measured. slots: how many measure at once, all of them by default.

    Raises BundleError, and whatever `run` raises.
    """
    model, backends, measured = _measure(
        bundle, replace(layout, slots=slots or layout.slots), dtype, kept, backend, run or run_at_once, memory
    )
    kept.keep(Conditions.of(bundle.spec, layout, dtype, backend), measured)
    if layout.device.type == "cuda":
        torch.cuda.empty_cache()  # what was measured ran on a stream that no slot uses, and PyTorch keeps freed memory by stream
    return _warm(model, backends, layout, measured)


def _warm(model: LoadedModel, backends: Backends | None, layout: Layout, measured: Measured) -> Warm:
    steps = measured.step_times(ALMOST if model.steps is None else ALMOST_STEPS)
    executor = OneShot(backends or model, layout.device) if model.steps is None else Stepwise(model.steps, layout.device, measured.usual)
    return Warm(executor, steps, FORMATS[measured.dtype], measured, backends)


def _measure(
    bundle: Bundle, layout: Layout, dtype: str, kept: Measurements, backend: BackendSetting, run: Run, memory: ModelMemory | None
) -> tuple[LoadedModel, Backends | None, Measured]:
    model, chosen, difference = in_the_faster_format(bundle, layout, dtype, run)
    steps = _probe(model, layout, run)
    if model.steps is not None:
        return model, None, Measured.now(chosen, steps, usual=see_usual(model, layout, run), max_difference=difference)
    backends = _backends(bundle, model, layout, backend, kept, BackendTimes(), memory)
    if backends is None or len(backends.candidates) == 1:
        return model, backends, Measured.now(chosen, steps, max_difference=difference)
    backends.open(set(backends.candidates) - SLOW_TO_OPEN)
    usual, deadline = usual_schedule(bundle.spec), time.monotonic() + PROBE_SECONDS
    for size in sorted(steps.seconds, key=lambda size: (size != steps.best, size != 1, size)):
        if time.monotonic() < deadline:
            compare(backends, layout, usual, size, run)
    for size, seconds in backends.times.best(backends.schedule(usual), backends.usable).items():
        steps.settle(size, seconds)
    return model, backends, Measured.now(chosen, steps, backends.times, max_difference=difference)


def compare(backends: Backends, layout: Layout, schedule: MergeSchedule, size: int, run: Run) -> None:
    """Measure a batch in every backend that may run it, in turns, so that what else the machine does hits all alike.

    Merging off takes its turns too: a schedule's seconds are those in relation to the seconds of `off` that are known already.
    """
    given, own, off = sample(backends.spec, size), backends.schedule(schedule), backends.schedule(MergeSchedule.off())
    ways: dict[tuple[Schedule, Backend], list[float]] = {(own, backend): [] for backend in backends.usable(own)}
    ways.setdefault((off, "eager"), [])
    for turn in range(1 + REPEATS):
        for (merge, backend), seconds in sorted(ways.items(), reverse=turn % 2 == 1):  # who runs after a sibling finds warm caches
            took = _own_seconds(layout, partial(backends.run, backend, given, {"merge": merge}), run)
            if turn:  # the first batch also pays for what happens only once
                seconds.append(took)
    plain, known = min(ways[off, "eager"]), backends.times.seconds(off, "eager", size)
    drift = 1.0 if known is None else known / plain
    if known is None:
        backends.times.record(off, "eager", size, plain)
    for (merge, backend), seconds in ways.items():
        if merge == own:
            backends.times.record(own, backend, size, min(seconds) * drift)


def _own_seconds(layout: Layout, work: Callable[[], Any], run: Run) -> float:
    """CPU seconds where each slot computes in its own thread, so that waiting for a busy CPU does not count; else what `run` says."""
    spent: list[float] = []

    def timed() -> None:
        started = time.thread_time()
        work()
        spent.append(time.thread_time() - started)

    seconds = run(layout, timed)
    return sum(spent) / len(spent) if layout.device.type == "cpu" and layout.threads == 1 else seconds


def _backends(
    bundle: Bundle,
    model: LoadedModel,
    layout: Layout,
    setting: BackendSetting,
    kept: Measurements,
    times: BackendTimes,
    memory: ModelMemory | None,
) -> Backends | None:
    if model.steps is not None:
        return None
    return Backends(bundle, model, layout, setting, kept.graphs, sample(bundle.spec, 2), times, memory)


def run_at_once(layout: Layout, work: Callable[[], Any]) -> float:
    """Do `work` in every slot at the same time; the mean seconds it took."""

    def timed(_slot: int) -> float:
        torch.set_num_threads(layout.threads)
        started = time.monotonic()
        work()
        return time.monotonic() - started

    with ThreadPoolExecutor(layout.slots) as pool:
        return sum(pool.map(timed, range(layout.slots))) / layout.slots


def _told_format(spec: BundleSpec, dtype: str) -> Format | None:
    """None: the faster one."""
    if architectures()[spec.architecture].precise:
        return "float32"
    return next((name for name in FORMATS if name == dtype), None)


def in_the_faster_format(bundle: Bundle, layout: Layout, dtype: str, run: Run = run_at_once) -> tuple[LoadedModel, Format, float | None]:
    """The model in the format that `dtype` names, or the faster one; its name; and `difference` to float32. Raises BundleError."""
    told = _told_format(bundle.spec, dtype)
    exact = load(bundle, device=layout.device, dtype=torch.float32)
    if told == "float32" or next(exact.model.parameters(), None) is None:
        return exact, "float32", 0.0
    short = load(bundle, device=layout.device, dtype=torch.bfloat16)
    if told is None:
        size = DTYPE_BATCH if DTYPE_BATCH * _run(exact, layout, 1, usual_schedule(bundle.spec), run).whole <= LONGEST_BATCH else 1
        exact_s, short_s = (_seconds(model, layout, size, time.monotonic() + DTYPE_SECONDS, run).batch for model in (exact, short))
        if short_s >= CLEARLY_FASTER * exact_s:
            return exact, "float32", 0.0
    return short, "bfloat16", difference(exact, short)


def difference(exact: LoadedModel, short: LoadedModel) -> float | None:
    """Largest difference between two formats' answers to a usual job: logits of classifiers. None for jobs of several steps, whose
    architectures run in float32."""
    if exact.steps is not None:
        return None
    given, options = sample(exact.spec, 1), {"merge": per_block(exact, usual_schedule(exact.spec))}
    own, other = exact.forward(given, options), short.forward(given, options)
    return max(float(np.abs(own[name].astype(np.float64) - other[name]).max(initial=0.0)) for name in own)


def _probe(model: LoadedModel, layout: Layout, run: Run) -> StepTimes:
    """Step times from 1 item upwards, until the throughput has fallen twice, batches take long, memory ends or time is up."""
    steps = StepTimes(layout.largest_batch)
    deadline = time.monotonic() + PROBE_SECONDS
    size, whole = 1, 0.0
    while size <= steps.largest and size <= 4 * steps.best and (size == 1 or (time.monotonic() < deadline and 2 * whole <= LONGEST_BATCH)):
        try:
            took = _seconds(model, layout, size, deadline, run)
            steps.record(size, took.batch)
            whole = took.whole
        except (torch.OutOfMemoryError, MemoryError):
            steps.out_of_memory(size)
        size *= 2
    return steps


class Took(NamedTuple):
    """Seconds."""

    batch: float
    """Of a forward pass or step."""
    whole: float
    """With the start of the jobs that took the step."""


def _seconds(model: LoadedModel, layout: Layout, size: int, deadline: float, run: Run) -> Took:
    """The fastest of a few until the deadline. The first also pays for what happens only once."""
    schedule = usual_schedule(model.spec)
    times = [_run(model, layout, size, schedule, run)]
    for _ in range(REPEATS):
        if time.monotonic() >= deadline:
            break
        times.append(_run(model, layout, size, schedule, run))
    return min(times)


def _run(model: LoadedModel, layout: Layout, size: int, schedule: MergeSchedule, run: Run, backends: Backends | None = None) -> Took:
    """A forward pass, by the model or as `backends` choose, or the first step of jobs that have started.

    Raises ValueError where it gives no answers."""
    if model.steps is not None:
        steps, jobs = model.steps, deque[list[State]]()  # no two slots step the same job
        start = run(layout, lambda: jobs.append(started(model, size, schedule)))
        step = run(layout, lambda: steps.step(jobs.pop(), [False] * size))
        return Took(step, start + step)
    arrays, options = sample(model.spec, size), {"merge": per_block(model, schedule)}
    forward = model.forward if backends is None else backends.prepare
    seconds = run(layout, lambda: check(forward(arrays, options), size, model.spec))
    return Took(seconds, seconds)
