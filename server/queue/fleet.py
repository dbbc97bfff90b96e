"""Who serves what: what a gateway knows of the workers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from models.bundle import BundleSpec
from server.queue.job import WorkerInfo

PASS_MS, LONG_JOB_MS = 50, 1000
"""What a pass, and a job of an unknown number of steps, count for before anybody has measured them."""
NO_RATES = 0.0, 0.0


@dataclass(frozen=True)
class Fleet:
    """The living workers, the specs they serve or have served, and the operators' repository states."""

    workers: tuple[WorkerInfo, ...] = ()
    specs: Mapping[tuple[str, str], BundleSpec] = field(default_factory=dict)
    """(name, version) → spec. What was seen once stays known while no worker serves it: its requests wait for one."""
    repository: Mapping[str, str] = field(default_factory=dict)
    """Bundle name → `loaded` | `unloaded`; absent: loaded."""

    def work_ms(self, bundle_id: str, steps: int | None, *, takes_long: bool) -> int:
        """What the service takes for one job, by what its ready workers measured. `steps`: None where nobody knows how many it takes."""
        if steps is not None:
            rate = self._rates.get(bundle_id, NO_RATES)[1]
            return math.ceil(1000 * steps / rate) if rate > 0 else PASS_MS * steps
        rate = self.items_per_second(bundle_id)
        return math.ceil(1000 / rate) if rate > 0 else LONG_JOB_MS if takes_long else PASS_MS

    def items_per_second(self, bundle_id: str) -> float:
        """What the ready workers measured, added up; 0 while unknown."""
        return self._rates.get(bundle_id, NO_RATES)[0]

    @cached_property
    def _rates(self) -> Mapping[str, tuple[float, float]]:
        """Jobs and steps per second of each bundle, those of all ready workers added up."""
        rates: dict[str, tuple[float, float]] = {}
        for worker in self.workers:
            for bundle in worker.bundles if worker.state == "ready" else ():
                if bundle.state == "ready":
                    items, steps = rates.get(bundle_id := f"{bundle.name}@{bundle.version}", NO_RATES)
                    rates[bundle_id] = items + bundle.items_per_second, steps + bundle.steps_per_second
        return rates
