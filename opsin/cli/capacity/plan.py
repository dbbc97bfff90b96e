"""The arithmetic of `opsin capacity`: from what was measured and what is wanted to numbers of workers, gateways and cells, and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opsin.cli.capacity import redis_figures
from opsin.cli.capacity.measurements import MIN_ITEMS, MeasuredBundle, MeasuredService
from opsin.cli.capacity.simulation import BatchTimes, Demand, SimulatedPool, simulate
from opsin.cli.shared.errors import CommandError

MAX_OBJECTIVE_FACTOR = 8
"""Times the workers that the rate alone needs, up to which an objective adds workers."""


@dataclass(frozen=True)
class CapacityRequest:
    """The load to plan for."""

    rate: float
    """Items per second."""
    mix: Mapping[str, float]
    """Weight of each bundle; empty: as measured."""
    load: float = 0.7
    """Share of the capacity of workers, gateways and Redis that the rate may use."""
    objective_s: float | None = None
    """Limit of the 99th percentile of the time in the service."""
    workers: int | None = None
    """Number of workers to predict for, instead of the smallest that suffices."""
    job_share: float = 0.0
    """Share of the items that belong to asynchronous jobs."""
    result_ttl_s: float = 3600.0


@dataclass(frozen=True)
class BundlePlan:
    """One bundle's part of a plan."""

    bundle: str
    rate: float
    seconds_per_item: float
    """Time of a slot for an item, at the best batch size."""
    batch_limit: int
    payload_bytes: float
    measured_items: int


@dataclass(frozen=True)
class WorkerPlan:
    count: int
    running: int
    """Number of workers that the service has now."""
    slots: int
    """Batches that a worker runs at once."""
    items_per_second: float
    """Capacity of one worker for this mix."""
    load: float
    """Rate ÷ capacity of all."""
    busy: float
    """Expected share of the time in which slots run batches: above `load` if batches are smaller than the best size."""
    batch_size: float
    p99_s: float
    """Expected 99th percentile of the time in the service. It leaves out that batches of one size take different times."""
    items_per_worker: int
    """Threshold of KEDA: unfinished items for which one worker is started."""


@dataclass(frozen=True)
class GatewayPlan:
    count: int
    running: int
    cpu_s_per_item: float
    cores: float
    """CPU time of all gateways per second."""


@dataclass(frozen=True)
class RedisPlan:
    """Numbers for all cells together."""

    cells: int
    cpu_s_per_item: float
    cores: float
    bytes_per_second: float
    """Payload that gateways write and workers read."""
    unfinished_bytes: float
    """Memory of unfinished items, at the moments when the slowest percent of them waits."""
    result_bytes: float
    """Memory of the kept results of asynchronous jobs."""
    memory_bytes: float
    used_bytes: float | None
    """Memory that the service's Redis uses now."""


@dataclass(frozen=True)
class CapacityPlan:
    rate: float
    bundles: tuple[BundlePlan, ...]
    workers: WorkerPlan
    gateways: GatewayPlan
    redis: RedisPlan


def plan(service: MeasuredService, request: CapacityRequest) -> CapacityPlan:
    """Compute what the load needs. Raises CommandError if too little was measured, or no number of workers reaches the objective."""
    weights = _weights(service, request.mix)
    measured = [bundle for bundle in service.bundles if bundle.id in weights]
    times = _require_measurements(service, measured)
    total = sum(weights.values())
    demands = [Demand(request.rate * weights[bundle.id] / total, times[bundle.id]) for bundle in measured]
    bundles = tuple(
        BundlePlan(bundle.id, demand.rate, demand.times.best_seconds_per_item, demand.times.largest, bundle.payload_bytes, bundle.items)
        for bundle, demand in zip(measured, demands, strict=True)
    )
    workers, pool = _plan_workers(service, request, demands)
    gateway_cores = request.rate * service.gateway_cpu_s
    gateways = GatewayPlan(max(1, math.ceil(gateway_cores / request.load)), service.gateways, service.gateway_cpu_s, gateway_cores)
    return CapacityPlan(request.rate, bundles, workers, gateways, _plan_redis(service, request, bundles, pool))


def _weights(service: MeasuredService, mix: Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each bundle by its id."""
    if not mix:
        return {bundle.id: float(bundle.items) for bundle in service.bundles if bundle.items}
    weights: dict[str, float] = {}
    for name, weight in mix.items():
        id_ = service.find(name).id
        weights[id_] = weights.get(id_, 0.0) + weight
    return weights


def _require_measurements(service: MeasuredService, measured: Sequence[MeasuredBundle]) -> dict[str, BatchTimes]:
    """Return the batch times of each bundle. Raises CommandError if there are too few measurements."""
    if not service.workers:
        raise CommandError("no worker is ready, so the number of batches that a worker runs at once is not known: start one")
    if not measured or service.items < MIN_ITEMS:
        raise CommandError(f"too few measurements: {service.items} items were answered; send at least {MIN_ITEMS - service.items} more")
    times = {bundle.id: bundle.times for bundle in measured if bundle.times and bundle.items >= MIN_ITEMS}
    for bundle in measured:
        if bundle.id not in times:
            missing = max(1, MIN_ITEMS - bundle.items)
            raise CommandError(f"too few measurements of {bundle.id}: {bundle.items} items were answered; send at least {missing} more")
    return times


def _plan_workers(service: MeasuredService, request: CapacityRequest, demands: Sequence[Demand]) -> tuple[WorkerPlan, SimulatedPool]:
    slot_seconds = sum(demand.rate * demand.times.best_seconds_per_item for demand in demands)

    smallest = max(1, math.ceil(slot_seconds / service.slots / request.load - 1e-9))
    count = request.workers or smallest
    pool = simulate(demands, count * service.slots)
    if request.objective_s is not None and request.workers is None:
        while pool.p99_s + service.gateway_s > request.objective_s:
            if count >= MAX_OBJECTIVE_FACTOR * smallest:
                raise CommandError(
                    f"--objective: with {count} workers, 99 % of the answers take up to {pool.p99_s + service.gateway_s:.3g} s: "
                    "more workers do not help, smaller batches or a faster model may"
                )
            count += max(1, count // 8)
            pool = simulate(demands, count * service.slots)
    capacity = request.rate * service.slots / slot_seconds
    longest_wait_s = request.objective_s or 1.0
    return WorkerPlan(
        count,
        service.workers,
        service.slots,
        capacity,
        request.rate / capacity / count,
        pool.busy,
        pool.batch_size,
        pool.p99_s + service.gateway_s,
        max(1, math.floor(capacity * longest_wait_s)),
    ), pool


def _plan_redis(service: MeasuredService, request: CapacityRequest, bundles: tuple[BundlePlan, ...], pool: SimulatedPool) -> RedisPlan:
    cores = sum(bundle.rate * redis_figures.cpu_s(bundle.payload_bytes) for bundle in bundles)
    stored = sum(bundle.rate * redis_figures.memory_bytes(bundle.payload_bytes) for bundle in bundles) / request.rate
    unfinished = request.rate * pool.p99_s * stored
    if request.job_share and service.result_bytes is None:
        raise CommandError("--jobs: the service has no result of an asynchronous job whose size it could report: run one and ask again")
    results = request.rate * request.job_share * request.result_ttl_s * (service.result_bytes or 0.0)
    cells = max(1, math.ceil(cores / request.load - 1e-9))
    return RedisPlan(
        cells,
        cores / request.rate,
        cores,
        sum(bundle.rate * bundle.payload_bytes for bundle in bundles),
        unfinished,
        results,
        cells * _idle_bytes(service, stored) + unfinished + results,
        service.redis_bytes,
    )


def _idle_bytes(service: MeasuredService, stored_bytes: float) -> float:
    """Estimate the memory of Redis without unfinished items and results. stored_bytes: of an unfinished item."""
    if service.redis_bytes is None:
        return redis_figures.IDLE_BYTES
    stored_now = service.unfinished * stored_bytes + service.kept_bytes
    return max(redis_figures.IDLE_BYTES, service.redis_bytes - stored_now)
