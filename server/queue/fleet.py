"""Who serves what: what a gateway knows of the workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from models.bundle import BundleSpec
from server.queue.job import ServedBundle, WorkerInfo


@dataclass(frozen=True)
class Fleet:
    """The living workers, the specs they serve or have served, and the operators' repository states."""

    workers: tuple[WorkerInfo, ...] = ()
    specs: Mapping[tuple[str, str], BundleSpec] = field(default_factory=dict)
    """(name, version) → spec. What was seen once stays known while no worker serves it: its requests wait for one."""
    repository: Mapping[str, str] = field(default_factory=dict)
    """Bundle name → `loaded` | `unloaded`; absent: loaded."""

    def ready(self, name: str, version: str) -> list[ServedBundle]:
        """The bundle as each worker that is ready for it announces it."""
        return [
            bundle
            for worker in self.workers
            if worker.state == "ready"
            for bundle in worker.bundles
            if (bundle.name, bundle.version, bundle.state) == (name, version, "ready")
        ]

    def items_per_second(self, bundle_id: str) -> float:
        """What the ready workers measured, added up; 0 while unknown."""
        name, _, version = bundle_id.partition("@")
        return sum(bundle.items_per_second for bundle in self.ready(name, version))
