"""The document of `GET /v1/status`: the state of queue and fleet, read at most once a second for all clients."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from server.gateway import model_directory
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.gateway.fleet import Fleet
from server.queue.gateway.status_reader import STEP_S, DeadLetter, QueueSnapshot, StatusLongJob, StatusQueue
from server.queue.messages import ServedBundle
from server.queue.record import rfc3339
from server.telemetry.metrics import DURATION, quantile

MAX_AGE_S = 1.0
"""Maximum age of a document."""


class StatusWorker(msgspec.Struct, frozen=True):
    """A living worker; `bundles` are those that it serves, `restarts` how often its `opsin serve` restarted it after a death or hang,
    `slots` how many batches it runs at once (0: unknown)."""

    id: str
    state: str
    device: str
    bundles: list[str]
    restarts: int
    slots: int


class StatusJobs(msgspec.Struct, frozen=True):
    """Asynchronous jobs that have not ended."""

    queued: int
    running: int


class StatusTotals(msgspec.Struct, frozen=True):
    """Unfinished jobs of the queue. `waiting` includes requests that wait in gateways for a first worker, one each."""

    waiting: int
    running: int
    unfinished: int


class StatusBundle(msgspec.Struct, frozen=True):
    """A bundle that ready workers serve. `items_per_second`: the sum of their measurements. `batch_budget`: the largest. `rung`: of
    requests that name none, null if merging is off. Quantiles of the total time of its requests and jobs in the history, null if there
    were none."""

    model: str
    version: str
    items_per_second: float
    batch_budget: int
    rung: str | None
    p50_ms: float | None
    p95_ms: float | None


class StatusRefused(msgspec.Struct, frozen=True):
    """A bundle that every living worker that has it refuses, and the reason."""

    model: str
    version: str
    reason: str


class StatusHistory(msgspec.Struct, frozen=True):
    """One entry for each complete step of `step_s` seconds, the oldest first; null if nothing was measured. Quantiles are within 5 %."""

    step_s: int
    requests: list[int]
    items: list[int]
    p50_ms: list[float | None]
    p95_ms: list[float | None]
    batch_size: list[float | None]
    tokens_in: list[int]
    tokens_out: list[int]


class StatusDocument(msgspec.Struct, frozen=True):
    """A cell at `time`, over all its gateways and workers."""

    time: str
    cell: int
    gateways: int
    workers: list[StatusWorker]
    queue: list[StatusQueue]
    totals: StatusTotals
    jobs: StatusJobs
    long_jobs: list[StatusLongJob]
    bundles: list[StatusBundle]
    refused: list[StatusRefused]
    history: StatusHistory
    dead_letters: list[DeadLetter]


class StatusReport:
    """The document of `GET /v1/status`, of one gateway."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._read_lock = asyncio.Lock()
        self._read_at = -MAX_AGE_S
        self._latest = b""

    async def read(self) -> bytes:
        """Return the document as JSON, at most a second old. Raises RedisUnavailable."""
        async with self._read_lock:
            if time.monotonic() - self._read_at >= MAX_AGE_S:
                await self._dispatcher.refresh()  # writes the counts of this gateway
                self._latest = msgspec.json.encode(await self._document())
                self._read_at = time.monotonic()
        return self._latest

    async def _document(self) -> StatusDocument:
        snapshot, fleet = await self._dispatcher.status.read(), await self._dispatcher.fleet.read()
        return StatusDocument(
            time=rfc3339(snapshot.now_ms),
            cell=self._dispatcher.link.keyspace.cell,
            gateways=snapshot.gateways,
            workers=[
                StatusWorker(worker.id, worker.state, worker.device, _ready(worker.bundles), worker.restarts, worker.slots)
                for worker in sorted(fleet.workers, key=lambda worker: worker.id)
            ],
            queue=snapshot.queue,
            totals=_totals(snapshot),
            jobs=StatusJobs(snapshot.records.counts.get("queued", 0), snapshot.records.counts.get("running", 0)),
            long_jobs=snapshot.ongoing,
            bundles=_bundles(fleet, snapshot),
            refused=[
                StatusRefused(id_.partition("@")[0], id_.partition("@")[2], reason)
                for id_, reason in model_directory.refusals(fleet).items()
            ],
            history=_history(snapshot),
            dead_letters=snapshot.letters,
        )


def _totals(snapshot: QueueSnapshot) -> StatusTotals:
    waiting = snapshot.waiting_for_worker + sum(queue.waiting for queue in snapshot.queue)
    running = sum(queue.running for queue in snapshot.queue)
    return StatusTotals(waiting, running, waiting + running)


def _ready(bundles: Sequence[ServedBundle]) -> list[str]:
    return sorted(f"{bundle.name}@{bundle.version}" for bundle in bundles if bundle.state == "ready")


def _bundles(fleet: Fleet, snapshot: QueueSnapshot) -> list[StatusBundle]:
    summaries = []
    for spec in sorted(fleet.specs.values(), key=lambda spec: spec.id):
        served = [bundle for _, bundle in model_directory.serving(fleet, spec)]
        if served:
            speed, budget = sum(bundle.items_per_second for bundle in served), max(bundle.batch_budget for bundle in served)
            took = sum((Counter(_durations(step, f" {spec.id}")) for step in snapshot.steps), Counter[int]())
            quantiles = quantile(took, 0.5), quantile(took, 0.95)
            summaries.append(StatusBundle(spec.name, spec.version, round(speed, 2), budget, spec.default_rung, *quantiles))
    return summaries


def _history(snapshot: QueueSnapshot) -> StatusHistory:
    steps = snapshot.steps
    durations = [_durations(step) for step in steps]
    return StatusHistory(
        STEP_S,
        requests=[step.get("requests", 0) for step in steps],
        items=[step.get("items", 0) for step in steps],
        p50_ms=[quantile(buckets, 0.5) for buckets in durations],
        p95_ms=[quantile(buckets, 0.95) for buckets in durations],
        batch_size=[round(step["batched"] / step["batches"], 2) if step.get("batches") else None for step in steps],
        tokens_in=[step.get("tokens_in", 0) for step in steps],
        tokens_out=[step.get("tokens_out", 0) for step in steps],
    )


def _durations(step: Mapping[str, int], suffix: str = "") -> dict[int, int]:
    """Return the buckets of all requests, or of those whose names end with a suffix."""
    buckets = ((name.removeprefix(DURATION).removesuffix(suffix), count) for name, count in step.items() if name.endswith(suffix))
    return {int(index): count for index, count in buckets if index.isdecimal()}
