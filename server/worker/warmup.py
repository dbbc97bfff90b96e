"""Loading a bundle and measuring it before the first request: which number format, which backends, and how long batches take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from models.bundle import Bundle, BundleError, BundleSpec
from models.layers.steps import State
from models.loading import LoadedModel, load, not_served
from models.merge_schedule import MergeSchedule
from models.registry import architectures
from server.tasks.registry import TASKS
from server.worker.backend_times import Backend, BackendTimes, Schedule
from server.worker.backends import Backends, BackendSetting
from server.worker.budget import ALMOST, ALMOST_STEPS, StepTimes
from server.worker.executors import OneShot, check
from server.worker.layout import Layout
from server.worker.measurements import Conditions, Format, Measured, Measurements
from server.worker.model_memory import ModelMemory
from server.worker.stepwise import Stepwise, Usual

PROBE_SECONDS = 4.0
"""How long the batch sizes of one bundle may be measured, beyond the batch that is running then."""
DTYPE_SECONDS = 1.0
"""The same for one number format."""
DTYPE_BATCH = 4
LADDER_SECONDS = 1.0
"""How long the rungs of one bundle may be run before it is ready, beyond the batch that is running then."""
CLEARLY_FASTER = 0.9
"""bfloat16 costs a little accuracy: it must take at most this share of float32's time."""
REPEATS = 3
SLOW_TO_OPEN: frozenset[Backend] = frozenset({"fused"})
"""Backends that compile for seconds the first time: `Tuning` opens them, while nothing runs."""
FORMATS: dict[Format, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GRAPH_FORMATS: dict[Backend, str] = {"onnx": "float32", "int8": "int8"}
"""Formats of the backends that have weights of their own."""

Run = Callable[[Layout, Callable[[], Any]], float]
"""How a batch is run while measuring, as by `run_at_once`."""


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
    """Load `bundle`; measure it with every slot busy, unless `kept` knows it. `dtype` is `auto`, `float32` or `bfloat16`.

    Of a bundle that `kept` knows PyTorch alone is ready: `Tuning` opens the other backends. Raises BundleError.
    """
    reason = not_served(bundle.spec)
    if reason is not None:
        raise BundleError(reason)
    conditions = Conditions.of(bundle.spec, layout, dtype, backend)
    measured = kept.find(conditions)
    if measured is not None:
        model = load(bundle, device=layout.device, dtype=FORMATS[measured.dtype])
        backends = _backends(bundle, model, layout, backend, kept, measured.backend_times(), memory)
    else:
        model, backends, measured = measure(bundle, layout, dtype, kept, backend, memory=memory)
        kept.keep(conditions, measured)
    # the first batch pays for what happens only once, and shows whether the model runs at all
    for schedule in {usual_schedule(model.spec), MergeSchedule.off()}:
        _run(model, layout, 1, schedule, run_at_once, backends)
    executor, steps = _executor(model, backends, layout), measured.step_times(ALMOST if model.steps is None else ALMOST_STEPS)
    if isinstance(executor, OneShot):
        _warm_ladder(executor, model, layout, steps, backends)
    if layout.device.type == "cuda":
        torch.cuda.empty_cache()  # what was measured ran on a stream that no slot uses, and PyTorch keeps freed memory by stream
    return Warm(executor, steps, FORMATS[measured.dtype], measured, backends)


def _warm_ladder(executor: OneShot, model: LoadedModel, layout: Layout, steps: StepTimes, backends: Backends | None) -> None:
    """Run every rung once, alone and as the batches that are likeliest under load, while time allows; `Tuning` does the rest."""
    deadline = time.monotonic() + LADDER_SECONDS
    rungs = [usual_schedule(model.spec), MergeSchedule.off(), *(rung.merge for rung in model.spec.ladder)]
    for size, rung in dict.fromkeys((size, rung) for size in (1, steps.best) for rung in rungs):
        if time.monotonic() >= deadline:
            return
        _run(model, layout, size, rung, run_at_once, backends)
        executor.shapes.is_new(size, {"merge": list(_per_block(model, rung))})


def measure(
    bundle: Bundle,
    layout: Layout,
    dtype: str,
    kept: Measurements,
    backend: BackendSetting,
    run: Run | None = None,
    memory: ModelMemory | None = None,
) -> tuple[LoadedModel, Backends | None, Measured]:
    """The bundle in the faster format, its backends, and how long its batches take. Raises BundleError, and whatever `run` raises."""
    run = run or run_at_once
    model, chosen, difference = in_the_faster_format(bundle, layout, dtype, run)
    steps = _probe(model, layout, run)
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


def in_the_faster_format(bundle: Bundle, layout: Layout, dtype: str, run: Run = run_at_once) -> tuple[LoadedModel, Format, float | None]:
    """The model in the format that `dtype` names, or the faster one; its name; and `difference` to float32. Raises BundleError."""
    precise = architectures()[bundle.spec.architecture].precise
    exact = load(bundle, device=layout.device, dtype=torch.float32)
    if precise or dtype == "float32" or next(exact.model.parameters(), None) is None:
        return exact, "float32", 0.0
    short = load(bundle, device=layout.device, dtype=torch.bfloat16)
    if dtype == "auto":
        exact_s, short_s = (_seconds(model, layout, DTYPE_BATCH, time.monotonic() + DTYPE_SECONDS, run) for model in (exact, short))
        if short_s >= CLEARLY_FASTER * exact_s:
            return exact, "float32", 0.0
    return short, "bfloat16", difference(exact, short)


def difference(exact: LoadedModel, short: LoadedModel) -> float | None:
    """Largest difference between two formats' answers to a usual job: logits of classifiers. None for jobs of several steps, whose
    architectures run in float32."""
    if exact.steps is not None:
        return None
    given, options = sample(exact.spec, 1), {"merge": _per_block(exact, usual_schedule(exact.spec))}
    own, other = exact.forward(given, options), short.forward(given, options)
    return max(float(np.abs(own[name].astype(np.float64) - other[name]).max(initial=0.0)) for name in own)


def _probe(model: LoadedModel, layout: Layout, run: Run) -> StepTimes:
    """Step times from 1 item upwards, until the throughput has fallen twice, memory ends or time is up."""
    steps = StepTimes(layout.largest_batch)
    deadline = time.monotonic() + PROBE_SECONDS
    size = 1
    while size <= steps.largest and size <= 4 * steps.best and (size == 1 or time.monotonic() < deadline):
        try:
            steps.record(size, _seconds(model, layout, size, deadline, run))
        except (torch.OutOfMemoryError, MemoryError):
            steps.out_of_memory(size)
        size *= 2
    return steps


def _seconds(model: LoadedModel, layout: Layout, size: int, deadline: float, run: Run) -> float:
    """Seconds of a batch: the fastest of a few until the deadline. The first also pays for what happens only once."""
    schedule = usual_schedule(model.spec)
    times = [_run(model, layout, size, schedule, run)]
    for _ in range(REPEATS):
        if time.monotonic() >= deadline:
            break
        times.append(_run(model, layout, size, schedule, run))
    return min(times)


def _executor(model: LoadedModel, backends: Backends | None, layout: Layout) -> OneShot | Stepwise:
    if model.steps is None:
        return OneShot(backends or model, layout.device)
    began = time.monotonic()
    [state] = _started(model, 1, usual_schedule(model.spec))
    return Stepwise(model.steps, layout.device, Usual(model.steps.cost(state), state.total, state.nbytes, time.monotonic() - began))


def _run(model: LoadedModel, layout: Layout, size: int, schedule: MergeSchedule, run: Run, backends: Backends | None = None) -> float:
    """Seconds of a forward pass, by the model or as `backends` choose, or of the first step of jobs that have started.

    Raises ValueError where it gives no answers."""
    if model.steps is not None:
        steps, jobs = model.steps, [_started(model, size, schedule) for _ in range(layout.slots)]  # no two slots step the same job
        return run(layout, lambda: steps.step(jobs.pop(), [False] * size))
    arrays, options = sample(model.spec, size), {"merge": _per_block(model, schedule)}
    forward = model.forward if backends is None else backends.prepare
    return run(layout, lambda: check(forward(arrays, options), size, model.spec))


def _started(model: LoadedModel, size: int, schedule: MergeSchedule) -> list[State]:
    assert model.steps is not None
    jobs = [{name: rows[i] for name, rows in sample(model.spec, size).items()} for i in range(size)]
    return model.steps.start(jobs, [{"merge": _per_block(model, schedule)}] * size)


def sample(spec: BundleSpec, size: int) -> dict[str, np.ndarray]:
    """What the task calls a usual job, `size` times. Raises BundleError."""
    task = TASKS.get(spec.task)
    if task is None:
        raise BundleError(f"{spec.id}: task {spec.task} is not served yet by this version")
    return {name: np.stack([array] * size) for name, array in task.sample(spec).items()}


def usual_schedule(spec: BundleSpec) -> MergeSchedule:
    rung = spec.rung(spec.default_rung) if spec.default_rung else None
    return rung.merge if rung else MergeSchedule.off()


def _per_block(model: LoadedModel, schedule: MergeSchedule) -> Sequence[int]:
    return schedule.expand(model.depth)
