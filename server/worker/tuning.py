"""What is left of warming up when a bundle is ready, done while nothing else runs: other backends are opened, and each rung of the ladder
runs once at each likely batch size, measured where nobody knows how fast it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from kernels.memory import return_freed_memory
from models.bundle import Bundle, BundleError
from models.merge_schedule import MergeSchedule
from server.telemetry import logs
from server.worker.backend_times import Backend
from server.worker.backends import Backends, BackendSetting
from server.worker.executors import OneShot
from server.worker.layout import Layout
from server.worker.measurements import Conditions, Measured, Measurements
from server.worker.samples import Run, sample, usual_schedule
from server.worker.warmup import LONGEST_BATCH, SLOW_TO_OPEN, Warm, compare, run_at_once

log = logs.get(__name__)

HEAD_START = 1.0
"""Seconds after a start that belong to the requests that waited for it."""
LIKELY = 8
"""Batches up to this size are likely, whatever the budget says."""
STRETCH = 1.0
"""Seconds of a look, beyond the rung that is measured then: bundles are loaded and unloaded in between."""


class _Disturbed(Exception):
    """A request came; serving goes first."""


class Tuning:
    """Of one bundle."""

    def __init__(self, bundle: Bundle, warm: Warm, backends: Backends, layout: Layout) -> None:
        assert isinstance(warm.executor, OneShot)
        self.bundle = bundle
        self.measured = warm.measured
        self._backends = backends
        self._shapes = warm.executor.shapes
        self._layout = layout
        self._opened = False
        self._slow: frozenset[Backend] = frozenset()
        """Backends to be opened, beginning when nothing runs."""
        self._opener: threading.Thread | None = None
        self._best = warm.steps.best
        likely = [
            size
            for size, seconds in sorted(warm.steps.seconds.items())
            if size <= max(warm.steps.best, LIKELY) and seconds <= LONGEST_BATCH
        ]
        rungs = [MergeSchedule.off(), usual_schedule(bundle.spec), *(rung.merge for rung in bundle.spec.ladder)]
        self._left = list(dict.fromkeys((rung, size) for rung in rungs for size in likely))

    @property
    def setting(self) -> BackendSetting:
        return self._backends.setting

    @property
    def done(self) -> bool:
        return self._opened and not self._slow and not self._left

    @property
    def backends(self) -> dict[str, str]:
        """What runs the likely largest batch, by rung."""
        return self._backends.by_rung(self._best)

    @property
    def differences(self) -> dict[str, float]:
        """What is to be known of answers in int8, if any rung has them."""
        difference = self._backends.difference("int8")
        return {"int8_max_difference": difference} if "int8" in self.backends.values() and difference is not None else {}

    def open(self) -> None:
        """The other backends: all of them while something is to be measured, else those that run something. Slow ones are `opening`'s."""
        if self._opened:
            return
        backends = self._backends
        all_known = all(backends.knows(backends.schedule(rung), size) for rung, size in self._left)
        wanted = backends.times.chosen(lambda _: backends.candidates) if all_known and backends.setting == "auto" else backends.candidates
        self._slow = SLOW_TO_OPEN.intersection(wanted)
        backends.open(set(wanted) - SLOW_TO_OPEN)
        self._opened = True

    def opening(self) -> bool:
        """Whether what takes long is still being opened: in a thread of its own, so that bundles are loaded and unloaded meanwhile."""
        if self._slow and self._opener is None:
            self._opener = threading.Thread(target=self._backends.open, args=(set(self._slow),), name="open-backends", daemon=True)
            self._opener.start()
        if self._opener is not None and self._opener.is_alive():
            return True
        self._slow, self._opener = frozenset(), None
        return False

    def step(self, run: Run) -> None:
        """One rung at one size. Raises whatever `run` raises; then it is still to be done."""
        rung, size = self._left[0]
        backends = self._backends
        options: dict[str, Any] = {"merge": list(rung.expand(backends.model.depth))}
        if backends.setting == "auto" and not backends.knows(backends.schedule(rung), size):
            compare(backends, self._layout, rung, size, run)
            self.measured = msgspec.structs.replace(self.measured, backends=backends.times.to_json(), at=time.time())
        arrays = sample(self.bundle.spec, size)
        run(self._layout, lambda: backends.prepare(arrays, options))
        self._shapes.is_new(size, options)
        self._left.pop(0)
        if not self._left:
            backends.close_idle()


class Tunings:
    """For the thread that measures. idle: whether nothing runs or waits in this worker. learned: is told what was measured."""

    def __init__(
        self,
        layout: Layout,
        dtype: str,
        kept: Measurements,
        idle: Callable[[], bool],
        learned: Callable[[Bundle, Measured], None] = lambda bundle, measured: None,
        head_start: float = HEAD_START,
    ) -> None:
        self._layout = layout
        self._dtype = dtype
        self._kept = kept
        self._idle = idle
        self._learned = learned
        self._head_start = head_start
        self._from = 0.0
        """Monotonic seconds before which nothing is done."""
        self._of: dict[str, Tuning] = {}
        """By bundle id."""

    def loaded(self, bundle: Bundle, warm: Warm) -> None:
        if warm.backends is not None:
            self._of[bundle.spec.id] = Tuning(bundle, warm, warm.backends, self._layout)
            self._from = time.monotonic() + self._head_start

    @property
    def waiting(self) -> list[str]:
        """Ids of the bundles whose ladder is not warm."""
        return list(self._of)

    def look(self, served: list[str]) -> None:
        """Open the backends of what is loaded; go on with the rest while nothing runs. To be called every second. served: bundle ids."""
        for id_ in [id_ for id_ in list(self._of) if id_ not in served]:
            self._of.pop(id_, None)
        if time.monotonic() < self._from:
            return
        for id_, tuning in list(self._of.items()):
            try:
                tuning.open()
            except BundleError as error:  # its weights have left memory and cannot be loaded again
                log.warning("warming up the ladder failed", bundle=id_, reason=str(error))
                del self._of[id_]
        for id_, tuning in list(self._of.items()):
            started, before = time.monotonic(), tuning.measured
            try:
                while not tuning.done:
                    if time.monotonic() > started + STRETCH or not self._idle() or tuning.opening():
                        return
                    if not tuning.done:
                        tuning.step(self._run)
            except _Disturbed:
                return
            except Exception as error:
                # what serves goes on serving; the shapes that are left are prepared by the batches that first need them
                log.warning("warming up the ladder failed", bundle=id_, reason=repr(error))
            finally:
                if tuning.measured is not before:
                    self._kept.keep(Conditions.of(tuning.bundle.spec, self._layout, self._dtype, tuning.setting), tuning.measured)
                    self._learned(tuning.bundle, tuning.measured)
            if self._of.get(id_) is tuning:  # else it was loaded again meanwhile
                del self._of[id_]
            return_freed_memory()
            log.info("ladder warm", bundle=id_, backends=tuning.backends, **tuning.differences)

    def _run(self, layout: Layout, work: Callable[[], Any]) -> float:
        if not self._idle():
            raise _Disturbed
        return run_at_once(layout, work)
