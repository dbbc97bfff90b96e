"""Measuring while serving: bundles that nobody has measured here, soon; those that were measured long ago, once a day; and what is left of
warming up, while nothing else runs: other backends are opened, and each rung of the ladder runs once at each likely batch size.

Step times are learned while serving; which number format and which backends are faster is not. A machine that was busy when it was
measured, a new kernel or another neighbour may have changed that. What is found is kept for the next start and serves from then on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from kernels.malloc import return_freed_memory
from models.bundle import Bundle, BundleError
from models.merge_schedule import MergeSchedule
from server.scheduler.slots import Slots
from server.telemetry import logs
from server.worker.backend_times import Backend
from server.worker.backends.runner import usual_schedule
from server.worker.device_layout import Layout
from server.worker.executors import OneShot
from server.worker.warmup import LONGEST_BATCH, SLOW_TO_OPEN, Loader, Run, Warm, compare, run_at_once, sample

log = logs.get(__name__)

LIKELY = 8
"""Batches up to this size are likely, whatever the budget says."""


@dataclass(frozen=True)
class TunerTimings:
    """Seconds; tests shorten them."""

    old: float = 24 * 3600.0
    """Age at which a measurement is taken again."""
    quiet: float = 30.0
    """For so long nothing may have run before."""
    head_start: float = 1.0
    """The same before a bundle is measured that nobody has measured here, and after a bundle was loaded before its ladder is warmed: this
    time belongs to the requests that waited for it."""
    patience: float = 60.0
    """So long such a bundle waits for that; then it is measured in one slot, while the others serve."""
    stretch: float = 1.0
    """At a time in that slot; and for ladders, beyond the rung that is measured then: bundles are loaded and unloaded in between."""
    pause: float = 1.0
    """Between two times in that slot."""


class _Disturbed(Exception):
    """A request came; serving goes first."""


@dataclass(frozen=True)
class DueMeasurement:
    """When a bundle is to be measured."""

    bundle: Bundle
    at: float
    """Monotonic seconds."""
    unmeasured: bool


class Tuning:
    """The rest of the warm-up of one bundle of one forward pass."""

    def __init__(self, bundle: Bundle, warm: Warm, layout: Layout) -> None:
        assert isinstance(warm.executor, OneShot) and warm.backends is not None
        self.bundle = bundle
        self.measured = warm.measured
        self._backends = warm.backends
        self._shapes = warm.executor.shapes
        self._layout = layout
        self._opened = False
        self._slow: frozenset[Backend] = frozenset()
        """Backends to be opened, beginning when nothing runs."""
        self._best = warm.steps.best
        times, most = warm.steps.seconds, max(warm.steps.best, LIKELY)
        likely = [size for size in sorted(times) if size <= most and times[size] <= LONGEST_BATCH]
        rungs = [MergeSchedule.off(), usual_schedule(bundle.spec), *(rung.merge for rung in bundle.spec.ladder)]
        self._left = list(dict.fromkeys((rung, size) for rung in rungs for size in likely))

    @property
    def done(self) -> bool:
        return self._opened and not self._slow and not self._left

    def told(self) -> dict[str, Any]:
        """For the log: the backend of the likely largest batch by rung, and what int8 costs if any rung has it."""
        rungs, difference = self._backends.by_rung(self._best), self._backends.difference("int8")
        int8 = "int8" in rungs.values() and difference is not None
        return {"backends": rungs} | ({"int8_max_difference": difference} if int8 else {})

    def open(self) -> None:
        """The other backends: all of them while something is to be measured, else those that run something. Slow ones wait for `step`."""
        if self._opened:
            return
        backends = self._backends
        all_known = all(backends.knows(backends.schedule(rung), size) for rung, size in self._left)
        wanted = backends.times.chosen(lambda _: backends.candidates) if all_known and backends.setting == "auto" else backends.candidates
        self._slow = SLOW_TO_OPEN.intersection(wanted)
        backends.open(set(wanted) - SLOW_TO_OPEN)
        self._opened = True

    def step(self, run: Run) -> None:
        """Open the slow backends, or else run one rung at one size. Raises whatever `run` raises; then it is still to be done."""
        if self._slow:
            self._backends.open(set(self._slow))
            self._slow = frozenset()
            return
        rung, size = self._left[0]
        backends = self._backends
        options: dict[str, Any] = {"merge": list(rung.expand(backends.model.depth))}
        if backends.setting == "auto" and not backends.knows(backends.schedule(rung), size):
            compare(backends, self._layout, rung, size, run)
            self.measured = msgspec.structs.replace(self.measured, backends=backends.times.to_json(), at=time.time())
        arrays = sample(self.bundle.spec, size)
        run(self._layout, lambda: backends.forward(arrays, options))
        self._shapes.is_new(size, options)
        self._left.pop(0)
        if not self._left:
            backends.close_idle()


class Tuner:
    """For the thread that measures. swap: makes the worker serve a bundle in another form."""

    def __init__(
        self,
        loader: Loader,
        slots: Slots,
        swap: Callable[[Bundle, Warm], None] = lambda bundle, warm: None,
        timings: TunerTimings = TunerTimings(),
    ) -> None:
        self._loader = loader
        self._slots = slots
        self._swap = swap
        self._timings = timings
        self._putting = threading.Lock()
        self._due: dict[str, DueMeasurement] = {}
        """By bundle id, as the next one."""
        self._tunings: dict[str, Tuning] = {}
        self._tunes_from = 0.0
        """Monotonic seconds."""
        self._quiet_since = time.monotonic()

    def loaded(self, bundle: Bundle, warm: Warm) -> None:
        """To be called by any thread."""
        now, unmeasured = time.monotonic(), not warm.measured.seconds
        at = now if unmeasured else now + self._timings.old - warm.measured.age
        with self._putting:
            self._due[bundle.spec.id] = DueMeasurement(bundle, at, unmeasured)
        self._tune_later(bundle, warm)

    @property
    def tuning(self) -> list[str]:
        """Ids of the bundles whose ladder is not warm."""
        return list(self._tunings)

    def look(self, served: list[str]) -> None:
        """Do what is due, if this is the time for it; to be called every second. served: ids of the bundles that are loaded."""
        now = time.monotonic()
        if not self._slots.idle:
            self._quiet_since = now
        due = [due for id_, due in list(self._due.items()) if due.at <= now and id_ in served]
        unmeasured = [due for due in due if due.unmeasured]
        if unmeasured and now >= self._quiet_since + self._timings.head_start:
            self._measure(unmeasured[0], self._run_if_idle)
        elif unmeasured and now >= unmeasured[0].at + self._timings.patience:
            lent = LentSlot(self._slots, self._timings)
            try:
                self._measure(unmeasured[0], lent.run, slots=1)
            finally:
                lent.end()
        elif due and now >= self._quiet_since + self._timings.quiet:
            self._measure(due[0], self._run_if_idle)
        if not unmeasured:
            self._tune(served)

    def _measure(self, due: DueMeasurement, run: Run, slots: int | None = None) -> None:
        self._quiet_since = time.monotonic()
        id_ = due.bundle.spec.id
        try:
            warm = self._loader.measure(due.bundle, run, slots)
        except _Disturbed:
            return
        except Exception as error:
            # what serves goes on serving: damaged files and missing memory are told when it is loaded the next time
            log.warning("measuring failed", bundle=id_, reason=repr(error))
            with self._putting:
                self._due.pop(id_, None)
            return
        finally:
            return_freed_memory()
        log.info("measured", bundle=id_, **warm.figures())
        with self._putting:
            if self._due.get(id_) is due:  # else it was loaded again meanwhile
                self._due[id_] = DueMeasurement(due.bundle, time.monotonic() + self._timings.old, unmeasured=False)
        self._swap(due.bundle, warm)
        self._tune_later(due.bundle, warm)

    def _tune_later(self, bundle: Bundle, warm: Warm) -> None:
        if warm.backends is not None and warm.measured.seconds:
            self._tunings[bundle.spec.id] = Tuning(bundle, warm, self._loader.layout)
            self._tunes_from = time.monotonic() + self._timings.head_start

    def _tune(self, served: list[str]) -> None:
        """Open the backends of what is loaded; go on with the rest while nothing runs."""
        for id_ in self.tuning:
            if id_ not in served:
                self._tunings.pop(id_, None)
        if time.monotonic() < self._tunes_from:
            return
        tunings = dict(self._tunings)
        for id_, tuning in tunings.items():
            try:
                tuning.open()
            except BundleError as error:  # its weights have left memory and cannot be loaded again
                log.warning("warming up the ladder failed", bundle=id_, reason=str(error))
                del self._tunings[id_]
        for id_, tuning in tunings.items():
            if self._tunings.get(id_) is not tuning:
                continue  # it failed, or was loaded again meanwhile
            started, before = time.monotonic(), tuning.measured
            try:
                while not tuning.done:
                    if time.monotonic() > started + self._timings.stretch or not self._slots.idle:
                        return
                    tuning.step(self._run_if_idle)
            except _Disturbed:
                return
            except Exception as error:
                # what serves goes on serving; the shapes that are left are prepared by the batches that first need them
                log.warning("warming up the ladder failed", bundle=id_, reason=repr(error))
            finally:
                if tuning.measured is not before:
                    self._loader.kept.keep(self._loader.conditions(tuning.bundle.spec), tuning.measured)
            if self._tunings.get(id_) is tuning:  # else it was loaded again meanwhile
                del self._tunings[id_]
            return_freed_memory()
            log.info("ladder warm", bundle=id_, **tuning.told())

    def _run_if_idle(self, layout: Layout, work: Callable[[], Any]) -> float:
        if not self._slots.idle:
            raise _Disturbed
        return run_at_once(layout, work)


class LentSlot:
    """Runs in a slot that is lent for a second at a time, however much there is to serve."""

    def __init__(self, slots: Slots, timings: TunerTimings) -> None:
        self._slots = slots
        self._timings = timings
        self._since: float | None = None
        """When the slot was lent; None while it is not."""

    def run(self, layout: Layout, work: Callable[[], Any]) -> float:
        if self._since is not None and time.monotonic() >= self._since + self._timings.stretch:
            self.end()
            time.sleep(self._timings.pause)
        if self._since is None:
            self._slots.lend()
            self._since = time.monotonic()
        return run_at_once(replace(layout, slots=1), work)

    def end(self) -> None:
        if self._since is not None:
            self._slots.take_back()
            self._since = None
