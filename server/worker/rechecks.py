"""Measuring while serving: bundles that nobody has measured here, soon, and once a day those that were measured long ago.

Step times are learned while serving; which number format and which backends are faster is not. A machine that was busy when it was
measured, a new kernel or another neighbour may have changed that. What is found is kept for the next start and serves from then on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from kernels.memory import return_freed_memory
from models.bundle import Bundle
from server.telemetry import logs
from server.worker.backends import BackendSetting
from server.worker.layout import Layout
from server.worker.measurements import Measurements
from server.worker.model_memory import ModelMemory
from server.worker.samples import Run
from server.worker.warmup import Warm, measure_again, run_at_once

log = logs.get(__name__)


class Lender(Protocol):
    """What is needed of `Slots`."""

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits in this worker."""

    def lend(self) -> None:
        """Wait until a slot is free; from then on one fewer serves."""

    def take_back(self) -> None: ...


@dataclass(frozen=True)
class RecheckTimings:
    """Seconds; tests shorten them."""

    old: float = 24 * 3600.0
    """Age at which a measurement is taken again."""
    quiet: float = 30.0
    """For so long nothing may have run before."""
    head_start: float = 1.0
    """The same before a bundle is measured that nobody has measured here: for the requests that waited for it."""
    patience: float = 60.0
    """So long such a bundle waits for that; then it is measured in one slot, while the others serve."""
    stretch: float = 1.0
    """At a time in that slot."""
    pause: float = 1.0
    """Between two times."""


class _Disturbed(Exception):
    """A request came; serving goes first."""


@dataclass(frozen=True)
class Due:
    bundle: Bundle
    at: float
    """Monotonic seconds."""
    unmeasured: bool


class Rechecks:
    """For the thread that measures. swap: what makes the worker serve a bundle in another form."""

    def __init__(
        self,
        layout: Layout,
        dtype: str,
        kept: Measurements,
        slots: Lender,
        swap: Callable[[Bundle, Warm], None] = lambda bundle, warm: None,
        timings: RecheckTimings | None = None,
        backend: BackendSetting = "eager",
        memory: ModelMemory | None = None,
    ) -> None:
        self._layout = layout
        self._dtype = dtype
        self._backend = backend
        self._kept = kept
        self._slots = slots
        self._swap = swap
        self._memory = memory
        self._timings = timings or RecheckTimings()
        self._due: dict[str, Due] = {}
        """By bundle id."""
        self._putting = threading.Lock()
        self._quiet_since = time.monotonic()

    def loaded(self, bundle: Bundle, warm: Warm) -> None:
        """By any thread."""
        now, unmeasured = time.monotonic(), warm.measured.is_nothing
        at = now if unmeasured else now + self._timings.old - warm.measured.age
        with self._putting:
            self._due = self._due | {bundle.spec.id: Due(bundle, at, unmeasured)}

    def look(self, served: list[str]) -> bool:
        """Measure one bundle that is due, if this is the time for it; to be called every second. served: ids of what is loaded.

        False: none is unmeasured."""
        now = time.monotonic()
        if not self._slots.idle:
            self._quiet_since = now
        due = [due for id_, due in self._due.items() if due.at <= now and id_ in served]
        unmeasured = [due for due in due if due.unmeasured]
        if unmeasured and now >= self._quiet_since + self._timings.head_start:
            self._measure(unmeasured[0], self._run_if_idle)
        elif unmeasured and now >= unmeasured[0].at + self._timings.patience:
            turns = Turns(self._slots, self._timings)
            try:
                self._measure(unmeasured[0], turns.run, slots=1)
            finally:
                turns.end()
        elif due and now >= self._quiet_since + self._timings.quiet:
            self._measure(due[0], self._run_if_idle)
        return bool(unmeasured)

    def _measure(self, due: Due, run: Run, slots: int | None = None) -> None:
        self._quiet_since = time.monotonic()
        id_ = due.bundle.spec.id
        try:
            warm = measure_again(due.bundle, self._layout, self._dtype, self._kept, self._backend, self._memory, run, slots)
        except _Disturbed:
            return
        except Exception as error:
            # what serves goes on serving: damaged files and missing memory are told when it is loaded the next time
            log.warning("measuring failed", bundle=id_, reason=repr(error))
            with self._putting:
                self._due = {other: due for other, due in self._due.items() if other != id_}
            return
        finally:
            return_freed_memory()
        log.info(
            "measured",
            bundle=id_,
            dtype=warm.measured.dtype,
            batch=warm.steps.best,
            items_per_second=round(warm.steps.items_per_second, 1),
            max_difference=warm.measured.max_difference,
        )
        with self._putting:
            if self._due.get(id_) is due:  # else it was loaded again meanwhile
                self._due = self._due | {id_: Due(due.bundle, time.monotonic() + self._timings.old, unmeasured=False)}
        self._swap(due.bundle, warm)

    def _run_if_idle(self, layout: Layout, work: Callable[[], Any]) -> float:
        if not self._slots.idle:
            raise _Disturbed
        return run_at_once(layout, work)


class Turns:
    """Runs in a slot that is lent for a second at a time, however much there is to serve."""

    def __init__(self, slots: Lender, timings: RecheckTimings) -> None:
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
