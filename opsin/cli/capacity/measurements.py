"""Measurements that a running service has made of itself: read over HTTP, from its start or over a window of time."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opsin.cli.capacity.simulation import BatchTimes
from opsin.cli.shared.errors import CommandError

if TYPE_CHECKING:
    from opsin.connection import ServiceConnection

MIN_ITEMS = 100
"""Answered items of a bundle below which its batch times are not reliable."""
SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Counters = Mapping[tuple[str, str], float]
"""Values of counters by name and bundle (`name@version`, else empty)."""


@dataclass(frozen=True)
class MeasuredBundle:
    """Costs of one bundle's items."""

    id: str
    """`name@version`."""
    items: int
    """Number of answered items that the figures rest on."""
    times: BatchTimes | None
    """None if no batch has run."""
    batch_seconds: float
    """Sum of the times of batches in seconds. Those of jobs of several steps overlap."""
    payload_bytes: float
    """Mean bytes of an item's arrays in the queue."""

    @property
    def name(self) -> str:
        return self.id.partition("@")[0]


@dataclass(frozen=True)
class MeasuredService:
    """Measurements of a service. Those of gateways are means over all bundles."""

    workers: int
    slots: int
    """Batches that a worker runs at once."""
    gateways: int
    bundles: tuple[MeasuredBundle, ...]
    items: int
    """Number of answered items that the figures of gateways rest on."""
    gateway_cpu_s: float
    """CPU time of gateways per item."""
    gateway_s: float
    """Mean time of a request in a gateway: preparation and presentation."""
    redis_bytes: float | None
    """Memory that Redis uses; None if it does not say."""
    unfinished: int
    """Number of items in the queue at that moment."""
    kept_jobs: int
    """Number of ended asynchronous jobs whose results are kept."""
    kept_bytes: float
    """Memory of these results."""

    @property
    def result_bytes(self) -> float | None:
        """Mean bytes of a kept result; None if there are none."""
        return self.kept_bytes / self.kept_jobs if self.kept_jobs else None

    def find(self, name: str) -> MeasuredBundle:
        """Return the bundle NAME@VERSION, or NAME's with the most items. Raises CommandError."""
        found = [bundle for bundle in self.bundles if name in (bundle.id, bundle.name)]
        if not found:
            names = ", ".join(bundle.id for bundle in self.bundles)
            raise CommandError(f"--mix: {name}: the service has no such bundle; it has {names or 'none'}")
        return max(found, key=lambda bundle: bundle.items)


@dataclass(frozen=True)
class ServiceReading:
    """Everything that is read of a service at one moment. Counters only grow."""

    status: Mapping[str, Any]
    metrics: Counters
    statistics: Counters
    """Names are `<size>:count` and `<size>:ns` of batches, and `items`."""


def measure(service: ServiceConnection, window_s: float = 0.0) -> MeasuredService:
    """Read the service's measurements since its start, or those of the next `window_s` seconds. Raises OpsinError and CommandError."""
    if not window_s:
        return evaluate(None, _read(service))
    before = _read(service)
    time.sleep(window_s)
    return evaluate(before, _read(service))


def evaluate(before: ServiceReading | None, after: ServiceReading) -> MeasuredService:
    """Compute the figures of the time between two readings, or since the service's start. Raises CommandError."""
    metrics = _difference(before.metrics if before else {}, after.metrics)
    statistics = _difference(before.statistics if before else {}, after.statistics)
    status = after.status
    if ("opsin_cpu_seconds_total", "") not in metrics:
        raise CommandError("the service does not report opsin_cpu_seconds_total: its gateways are older than this command")
    budgets = {f"{bundle['model']}@{bundle['version']}": int(bundle["batch_budget"]) for bundle in status["bundles"]}
    ids = sorted(budgets.keys() | {bundle for _, bundle in statistics})
    items = _total(metrics, "opsin_items_total")
    prepared = _total(metrics, "opsin_preprocess_seconds_count")
    presented = _total(metrics, "opsin_postprocess_seconds_count")
    kept_jobs = sum(
        value for (name, state), value in after.metrics.items() if name == "opsin_jobs" and state in ("done", "failed", "cancelled")
    )
    workers = [worker for worker in status["workers"] if worker["state"] == "ready"]
    return MeasuredService(
        workers=len(workers),
        slots=max((int(worker.get("slots", 0)) for worker in workers), default=0) or 1,
        gateways=int(status["gateways"]),
        bundles=tuple(_bundle(id_, budgets.get(id_, 1), metrics, statistics) for id_ in ids),
        items=int(items),
        gateway_cpu_s=_total(metrics, "opsin_cpu_seconds_total") / max(1.0, items),
        gateway_s=_total(metrics, "opsin_preprocess_seconds_sum") / max(1.0, prepared)
        + _total(metrics, "opsin_postprocess_seconds_sum") / max(1.0, presented),
        redis_bytes=after.metrics.get(("opsin_redis_memory_bytes", "used")),
        unfinished=int(_total(after.metrics, "opsin_queue_depth")),
        kept_jobs=int(kept_jobs),
        kept_bytes=after.metrics.get(("opsin_result_bytes", ""), 0.0),
    )


def _bundle(id_: str, budget: int, metrics: Counters, statistics: Counters) -> MeasuredBundle:
    sizes = {int(name.partition(":")[0]) for name, bundle in statistics if bundle == id_ and name.endswith(":count")}
    counts = {size: statistics[f"{size}:count", id_] for size in sizes}
    seconds = {size: statistics[f"{size}:ns", id_] / count / 1e9 for size, count in counts.items() if count}
    jobs = metrics.get(("opsin_queued_jobs_total", id_), 0.0)
    return MeasuredBundle(
        id_,
        items=int(statistics.get(("items", id_), 0)),
        times=BatchTimes(seconds, max(1, budget)) if seconds else None,
        batch_seconds=sum(counts[size] * mean for size, mean in seconds.items()),
        payload_bytes=metrics.get(("opsin_queued_bytes_total", id_), 0.0) / max(1.0, jobs),
    )


def _read(service: ServiceConnection) -> ServiceReading:
    from opsin.api_request import ApiRequest, parse_answer

    def get(path: str, read: Any) -> Any:
        return parse_answer(service.exchange(ApiRequest("GET", path)), read)

    # parsed here, so that another server's answer is an error of its own
    status = get("/v1/status", lambda answer: {name: answer.json()[name] for name in ("workers", "gateways", "bundles")})
    statistics = get("/v2/models/stats", lambda answer: dict(_statistics(answer.json()["model_stats"])))
    return ServiceReading(status, get("/metrics", lambda answer: parse_metrics(answer.text)), statistics)


def _statistics(models: list[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str], float]]:
    for model in models:
        id_ = f"{model['name']}@{model['version']}"
        yield ("items", id_), float(model["inference_count"])
        for batch in model["batch_stats"]:
            yield (f"{batch['batch_size']}:count", id_), float(batch["compute_infer"]["count"])
            yield (f"{batch['batch_size']}:ns", id_), float(batch["compute_infer"]["ns"])


def parse_metrics(text: str) -> Counters:
    """Sum the samples of Prometheus' text by name and bundle, or by state or kind if they have no model. Buckets are left out."""
    values: dict[tuple[str, str], float] = defaultdict(float)
    for sample in SAMPLE.finditer(text):
        labels: dict[str, str] = dict(LABEL.findall(sample["labels"] or ""))
        model, version = labels.get("model", labels.get("state", labels.get("kind", ""))), labels.get("version")
        if "le" not in labels:
            values[sample["name"], model if version is None else f"{model}@{version}"] += float(sample["value"])
    return values


def _total(counters: Counters, name: str) -> float:
    return sum(value for (counter, _), value in counters.items() if counter == name)


def _difference(before: Counters, after: Counters) -> Counters:
    """Subtract an earlier reading. Raises CommandError if a counter of gateways' items has decreased."""
    if _total(after, "opsin_items_total") < _total(before, "opsin_items_total"):
        raise CommandError("--window: the two readings came from different gateways: give the address of one of them, not of a balancer")
    return {key: value - before.get(key, 0.0) for key, value in after.items()}
