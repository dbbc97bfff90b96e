"""Measuring again, while nothing else runs, what was measured long ago. The next start goes by it.

Step times are learned while serving; which number format and which backends are faster is not. A machine that was busy at the first
start, a new kernel or another neighbour may have changed that, so it is looked at once a day.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kernels.memory import return_freed_memory
from models.bundle import Bundle
from server.telemetry import logs
from server.worker.backends import BackendSetting
from server.worker.layout import Layout
from server.worker.measurements import Conditions, Measurements
from server.worker.warmup import Warm, measure, run_at_once

log = logs.get(__name__)


@dataclass(frozen=True)
class RecheckTimings:
    """Seconds; tests shorten them."""

    old: float = 24 * 3600.0
    """Age at which a measurement is taken again."""
    quiet: float = 30.0
    """For so long nothing may have run before."""


class _Disturbed(Exception):
    """A request came; serving goes first."""


class Rechecks:
    """For the thread that loads bundles. idle: whether nothing runs or waits in this worker."""

    def __init__(
        self,
        layout: Layout,
        dtype: str,
        kept: Measurements,
        idle: Callable[[], bool],
        timings: RecheckTimings | None = None,
        backend: BackendSetting = "eager",
    ) -> None:
        self._layout = layout
        self._dtype = dtype
        self._backend = backend
        self._kept = kept
        self._idle = idle
        self._timings = timings or RecheckTimings()
        self._due: dict[str, tuple[float, Bundle]] = {}
        """Bundle id → when to measure again, in monotonic seconds, and what."""
        self._quiet_since = time.monotonic()

    def loaded(self, bundle: Bundle, warm: Warm) -> None:
        self._due[bundle.spec.id] = (time.monotonic() + self._timings.old - warm.measured.age, bundle)

    def look(self, served: list[str]) -> None:
        """Measure one bundle that is due, if this is the time for it; to be called every second. served: ids of what is loaded."""
        now = time.monotonic()
        if not self._idle():
            self._quiet_since = now
        if now < self._quiet_since + self._timings.quiet:
            return
        due = next((bundle for id_, (at, bundle) in self._due.items() if at <= now and id_ in served), None)
        if due is not None:
            self._measure(due)

    def _measure(self, bundle: Bundle) -> None:
        self._quiet_since = time.monotonic()
        try:
            *models, measured = measure(bundle, self._layout, self._dtype, self._kept, self._backend, self._run)
        except _Disturbed:
            return
        except Exception as error:
            # what serves goes on serving: damaged files and missing memory are told when it is loaded the next time
            log.warning("measuring again failed", bundle=bundle.spec.id, reason=repr(error))
            del self._due[bundle.spec.id]
            return
        finally:
            return_freed_memory()
        del models
        log.info("measured again", bundle=bundle.spec.id, dtype=measured.dtype, batch=measured.step_times().best)
        self._kept.keep(Conditions.of(bundle.spec, self._layout, self._dtype, self._backend), measured)
        self._due[bundle.spec.id] = (time.monotonic() + self._timings.old, bundle)

    def _run(self, layout: Layout, work: Callable[[], Any]) -> float:
        if not self._idle():
            raise _Disturbed
        return run_at_once(layout, work)
