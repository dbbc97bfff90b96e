"""Loading a bundle in the form that was measured fastest, and measuring: which number format, which backends, how long batches take.

A bundle that nobody has measured here serves at once, by PyTorch in float32; `Tuner` measures it while it serves.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from models.bundle import Bundle, BundleError, BundleSpec
from models.layers.stepwise import JobState
from models.loading import LoadedModel, load, unsupported_reason
from models.merge_schedule import MergeSchedule
from models.registry import architectures
from server.scheduler.step_times import ALMOST, ALMOST_STEPS, StepTimes
from server.tasks.base import Task
from server.tasks.registry import main_task
from server.telemetry import logs
from server.worker.backend_times import Backend, BackendTimes, Schedule
from server.worker.backends.runner import Backends, BackendSetting, ModelMemory, usual_schedule
from server.worker.device_layout import Layout
from server.worker.executors import Arrays, OneShot, check
from server.worker.measurement_cache import Conditions, Format, Measured, Measurements
from server.worker.stepwise import Stepwise, Usual

log = logs.get(__name__)

Run = Callable[[Layout, Callable[[], Any]], float]
"""How a batch is run while measuring, as by `run_at_once`."""

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
"""Backends that compile for seconds the first time: `Tuner` opens them, while nothing runs."""
FORMATS: dict[Format, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GRAPH_FORMATS: dict[Backend, str] = {"onnx": "float32", "int8": "int8"}
"""Formats of the backends that have weights of their own."""


@dataclass(frozen=True)
class Warm:
    """A bundle that is ready to serve."""

    executor: OneShot | Stepwise
    steps: StepTimes
    measured: Measured
    backends: Backends | None = None
    """Backends of its batches; None for jobs of several steps."""

    def format(self, size: int) -> tuple[str, float | None]:
        """The number format of usual batches of `size`, and the largest difference between warm-up's answers in it and in float32."""
        backend = self.backends.usual(size) if self.backends is not None else "eager"
        if self.backends is not None and backend in GRAPH_FORMATS:
            return GRAPH_FORMATS[backend], self.backends.difference(backend)
        return self.measured.dtype, self.measured.max_difference

    def figures(self) -> dict[str, Any]:
        """For the log."""
        speed = self.steps.items_per_second
        return {
            "dtype": self.measured.dtype,
            "max_difference": self.measured.max_difference,
            "batch": self.steps.best,
            **({"items_per_second": round(speed, 1)} if speed else {}),  # 0 until something was measured
        }


@dataclass(frozen=True)
class Loader:
    """Loads and measures bundles for one layout. Raises BundleError."""

    layout: Layout
    dtype: str
    """`auto`, `float32` or `bfloat16`."""
    kept: Measurements
    backend: BackendSetting = "eager"
    memory: ModelMemory = field(default_factory=ModelMemory)

    def conditions(self, spec: BundleSpec) -> Conditions:
        return Conditions.of(spec, self.layout, self.dtype, self.backend)

    def warm_up(self, bundle: Bundle) -> Warm:
        """Load `bundle`. PyTorch alone is ready: `Tuner` opens the other backends.

        A form that was measured before has been seen to run. Any other shows in one batch that it does.
        """
        reason = unsupported_reason(bundle.spec)
        if reason is not None:
            raise BundleError(reason)
        known = self.kept.find(self.conditions(bundle.spec))
        measured = known or Measured.nothing(_told_format(bundle.spec, self.dtype) or "float32", self.layout.largest_batch)
        model = load(bundle, device=self.layout.device, dtype=FORMATS[measured.dtype], packed=True)
        backends = self._backends(bundle, model, self.layout, BackendTimes.from_json(measured.backends))
        if model.steps is not None and self.backend not in ("auto", "eager"):
            reason = f"its jobs take several steps ({model.steps.unit}), and those PyTorch takes: `auto` and `eager` mean that"
            log.warning("backend left out", bundle=bundle.spec.id, backend=self.backend, reason=reason)
        if model.steps is not None and measured.usual is None:
            measured = msgspec.structs.replace(measured, usual=see_usual(model, self.layout, run_at_once))
        elif model.steps is None and known is None:
            _run(model, replace(self.layout, slots=1), 1, run_at_once, backends)
            _run_others(model)
        return self._warm(model, backends, measured)

    def measure(self, bundle: Bundle, run: Run | None = None, slots: int | None = None) -> Warm:
        """Load `bundle` in the form that is fastest now, and keep what was measured. slots: how many measure at once, all of them by
        default. Also raises whatever `run` raises."""
        run, layout = run or run_at_once, replace(self.layout, slots=slots or self.layout.slots)
        model, chosen, max_difference = in_the_faster_format(bundle, layout, self.dtype, run)
        steps = probe(layout.largest_batch, lambda size, deadline: _seconds(model, layout, size, deadline, run))
        usual = see_usual(model, layout, run) if model.steps is not None else None
        backends = self._backends(bundle, model, layout, BackendTimes())
        if backends is not None and len(backends.candidates) > 1:
            backends.open(set(backends.candidates) - SLOW_TO_OPEN)
            schedule, deadline = usual_schedule(bundle.spec), time.monotonic() + PROBE_SECONDS
            for size in sorted(steps.seconds, key=lambda size: (size != steps.best, size != 1, size)):
                if time.monotonic() < deadline:
                    compare(backends, layout, schedule, size, run)
            for size, seconds in backends.times.best(backends.schedule(schedule), backends.usable).items():
                steps.settle(size, seconds)
        times = backends.times.to_json() if backends is not None else {}
        measured = Measured(chosen, steps.largest, dict(steps.seconds), time.time(), times, usual, max_difference)
        self.kept.keep(self.conditions(bundle.spec), measured)
        if layout.device.type == "cuda":
            torch.cuda.empty_cache()  # what was measured ran on a stream that no slot uses, and PyTorch keeps freed memory by stream
        return self._warm(model, backends, measured)

    def _backends(self, bundle: Bundle, model: LoadedModel, layout: Layout, times: BackendTimes) -> Backends | None:
        if model.steps is not None:
            return None
        return Backends(bundle, model, layout, self.backend, self.kept.graphs, sample(bundle.spec, 2), times, self.memory)

    def _warm(self, model: LoadedModel, backends: Backends | None, measured: Measured) -> Warm:
        steps, device = measured.step_times(ALMOST if model.steps is None else ALMOST_STEPS), self.layout.device
        executor = OneShot(backends or model, device) if model.steps is None else Stepwise(model.steps, device, measured.usual)
        return Warm(executor, steps, measured, backends)


def compare(backends: Backends, layout: Layout, schedule: MergeSchedule, size: int, run: Run) -> None:
    """Measure a batch in every backend that may run it, in turns, so that what else the machine does hits all alike.

    Merging off takes its turns too: a schedule's seconds are those in relation to the seconds of `off` that are known already.
    """
    given, own, off = sample(backends.spec, size), backends.schedule(schedule), backends.schedule(MergeSchedule.off())
    ways: dict[tuple[Schedule, Backend], list[float]] = {(own, backend): [] for backend in backends.usable(own)}
    ways.setdefault((off, "eager"), [])
    for turn in range(1 + REPEATS):
        for (merge, backend), seconds in sorted(ways.items(), reverse=turn % 2 == 1):  # who runs after a sibling finds warm caches
            took = own_seconds(layout, partial(backends.run, backend, given, {"merge": merge}), run)
            if turn:  # the first batch also pays for what happens only once
                seconds.append(took)
    plain, known = min(ways[off, "eager"]), backends.times.seconds(off, "eager", size)
    drift = 1.0 if known is None else known / plain
    if known is None:
        backends.times.record(off, "eager", size, plain)
    for (merge, backend), seconds in ways.items():
        if merge == own:
            backends.times.record(own, backend, size, min(seconds) * drift)


def own_seconds(layout: Layout, work: Callable[[], Any], run: Run) -> float:
    """CPU seconds where each slot computes in its own thread, so that waiting for a busy CPU does not count; else what `run` says."""
    spent: list[float] = []

    def timed() -> None:
        started = time.thread_time()
        work()
        spent.append(time.thread_time() - started)

    seconds = run(layout, timed)
    return sum(spent) / len(spent) if layout.device.type == "cpu" and layout.threads == 1 else seconds


def run_at_once(layout: Layout, work: Callable[[], Any]) -> float:
    """Do `work` in every slot at the same time; the mean seconds it took."""

    def timed(_slot: int) -> float:
        torch.set_num_threads(layout.threads)
        started = time.monotonic()
        work()
        return time.monotonic() - started

    with ThreadPoolExecutor(layout.slots) as pool:
        return sum(pool.map(timed, range(layout.slots))) / layout.slots


def sample(spec: BundleSpec, size: int) -> Arrays:
    """The arrays of a job that its task calls usual, `size` times. Raises BundleError."""
    return {name: np.stack([array] * size) for name, array in _task(spec).samples(spec)[0].items()}


def _task(spec: BundleSpec) -> Task[Any, Any]:
    task = main_task(spec)
    if task is None:
        raise BundleError(f"{spec.id}: task {spec.task} is not served yet by this version")
    return task


def _usual_options(model: LoadedModel) -> dict[str, Any]:
    rung = model.spec.rung(model.spec.default_rung) if model.spec.default_rung else None
    sight = None if rung is None else rung.merge_sight
    halves = {} if sight is None else {"merge_sight": sight.expand(model.depth)}
    return {"merge": usual_schedule(model.spec).expand(model.depth), **halves}


def _started(model: LoadedModel, size: int) -> list[JobState]:
    """Jobs before their first step."""
    assert model.steps is not None
    jobs = [{name: rows[i] for name, rows in sample(model.spec, size).items()} for i in range(size)]
    return model.steps.start(jobs, [_usual_options(model)] * size)


def see_usual(model: LoadedModel, layout: Layout, run: Run) -> Usual:
    """Start a usual job and take its first step, in one slot."""
    assert model.steps is not None
    steps, states, layout = model.steps, list[JobState](), replace(layout, slots=1)
    seconds = run(layout, lambda: states.extend(_started(model, 1)))
    step_seconds = run(layout, lambda: steps.step(states, [False]))
    return Usual(steps.cost(states[0]), states[0].total, states[0].nbytes, seconds, step_seconds)


def _told_format(spec: BundleSpec, dtype: str) -> Format | None:
    """None: the faster one."""
    architecture = architectures().get(spec.architecture)  # `load` refuses unknown ones
    if architecture is not None and spec.task in architecture.precise_tasks:
        return "float32"
    return next((name for name in FORMATS if name == dtype), None)


def in_the_faster_format(bundle: Bundle, layout: Layout, dtype: str, run: Run = run_at_once) -> tuple[LoadedModel, Format, float | None]:
    """The model in the format that `dtype` names, or the faster one; its name; and `difference` to float32. Raises BundleError."""
    told = _told_format(bundle.spec, dtype)
    exact = load(bundle, device=layout.device, dtype=torch.float32, packed=True)
    if told == "float32" or next(exact.model.parameters(), None) is None:
        return exact, "float32", 0.0
    short = load(bundle, device=layout.device, dtype=torch.bfloat16, packed=True)
    if told is None:
        size = DTYPE_BATCH if DTYPE_BATCH * _run(exact, layout, 1, run).whole <= LONGEST_BATCH else 1
        exact_s, short_s = (_seconds(model, layout, size, time.monotonic() + DTYPE_SECONDS, run).batch for model in (exact, short))
        if short_s >= CLEARLY_FASTER * exact_s:
            return exact, "float32", 0.0
    return short, "bfloat16", difference(exact, short)


def difference(exact: LoadedModel, short: LoadedModel) -> float | None:
    """Largest difference between two formats' answers to a usual job: logits of classifiers. None for jobs of several steps, whose
    architectures run in float32."""
    if exact.steps is not None:
        return None
    given, options = sample(exact.spec, 1), _usual_options(exact)
    own, other = exact.forward(given, options), short.forward(given, options)
    return max(float(np.abs(own[name].astype(np.float64) - other[name]).max(initial=0.0)) for name in own)


class Took(NamedTuple):
    batch: float
    """Seconds of a forward pass or step."""
    whole: float
    """The same with the start of the jobs that took the step."""


def probe(largest: int, seconds: Callable[[int, float], Took]) -> StepTimes:
    """Step times from 1 item upwards, until the throughput has fallen twice, batches take long, memory ends or time is up.

    seconds: of a batch of a size, measured until a deadline."""
    steps = StepTimes(largest)
    deadline = time.monotonic() + PROBE_SECONDS
    size, whole = 1, 0.0
    while size <= steps.largest and size <= 4 * steps.best and (size == 1 or (time.monotonic() < deadline and 2 * whole <= LONGEST_BATCH)):
        try:
            took = seconds(size, deadline)
            steps.record(size, took.batch)
            whole = took.whole
        except (torch.OutOfMemoryError, MemoryError):
            steps.out_of_memory(size)
        size *= 2
    return steps


def _seconds(model: LoadedModel, layout: Layout, size: int, deadline: float, run: Run) -> Took:
    """The fastest of a few until the deadline. The first also pays for what happens only once."""
    times = [_run(model, layout, size, run)]
    for _ in range(REPEATS):
        if time.monotonic() >= deadline:
            break
        times.append(_run(model, layout, size, run))
    return min(times)


def _run(model: LoadedModel, layout: Layout, size: int, run: Run, backends: Backends | None = None) -> Took:
    """A forward pass, by the model or as `backends` choose, or the first step of jobs that have started.

    Raises ValueError where it gives no answers."""
    if model.steps is not None:
        steps, jobs = model.steps, deque[list[JobState]]()  # no two slots step the same job
        start = run(layout, lambda: jobs.append(_started(model, size)))
        step = run(layout, lambda: steps.step(jobs.pop(), [False] * size))
        return Took(step, start + step)
    arrays, options = sample(model.spec, size), _usual_options(model)
    forward = model.forward if backends is None else backends.forward
    seconds = run(layout, lambda: check(forward(arrays, options), size, model.spec))
    return Took(seconds, seconds)


def _run_others(model: LoadedModel) -> None:
    """Run one job of every other kind that the bundle takes. Raises ValueError where it gives no answer."""
    for arrays in _task(model.spec).samples(model.spec)[1:]:
        check(model.forward({name: array[None] for name, array in arrays.items()}, {}), 1, model.spec)
