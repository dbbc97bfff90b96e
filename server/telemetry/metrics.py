"""Every Prometheus metric of the service, by the process that owns it. `docs/metrics.md` explains them.

With several gateways behind one socket the supervisor sets PROMETHEUS_MULTIPROC_DIR to a fresh folder; then each process
writes its values to files there and a scrape of any one of them answers with the sum.

Each request is counted in plain numbers, which are flushed to Prometheus' client together: each of its values has a lock of its own
(behind several gateways also a place in a file), and a histogram has two for each observation, at a thousand requests a second a tenth of a
gateway's time. One thread counts, any may flush.
"""

from __future__ import annotations

import asyncio
import collections
import math
import os
import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from models.bundle import BundleSpec

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

LATENCY = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
WAIT = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 120, 600, 3600)
SIZE = (1, 2, 4, 8, 16, 32, 64, 128)
EVENTS = ("queued", "started", "progress", "preview", "done", "failed", "cancelled")
WEBHOOK_OUTCOMES = ("delivered", "failed", "given_up", "dropped")
VIDEO_COUNTERS = {
    "people": "People who were detected in answers.",
    "tracks": "Tracks that were started, including those that were dropped as doubtful.",
    "windows": "Windows of tracks that were labelled.",
    "frames": "Frames that were searched for people.",
    "decoded_frames": "Frames of videos that were decoded, including those that no row shows.",
    "seconds": "Seconds of video that were analysed.",
}
SPANS_DROPPED = ("opsin_spans_dropped", "Spans of traces that no collector got, by reason.", ["reason"])
FLUSH_INTERVAL_S = 0.25
BYTES = tuple(1024 * 4**step for step in range(9))
GROWTH = math.log(1.1)
"""Logarithmic width of a bucket of durations: each is a tenth longer than the one before, so quantiles are right within 5 %."""
DURATION = "d"
"""Prefix of a bucket's name: `d12` of all requests, `d12 flags@1.0.0` of a bundle's requests that were waited for, and jobs."""


class BufferedCounter:
    """A buffer for one counter, or for a gauge that goes up and down."""

    __slots__ = ("_amount", "_counter")

    def __init__(self, counter: Counter | Gauge) -> None:
        self._counter = counter
        self._amount = 0

    def inc(self, amount: int = 1) -> None:
        self._amount += amount

    def flush(self) -> None:
        amount, self._amount = self._amount, 0
        if amount:
            self._counter.inc(amount)


class BufferedHistogram:
    """A buffer for one histogram."""

    __slots__ = ("_histogram", "_values", "observe")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._values: list[float] = []
        self.observe = self._values.append

    def flush(self) -> None:
        """Observe all values at once, with the same result as by `Histogram.observe`."""
        values = self._values[:]
        if not values:
            return
        del self._values[: len(values)]  # another thread may have added to them
        bounds = self._histogram._upper_bounds
        self._histogram._sum.inc(sum(values))
        for index, count in collections.Counter(bisect_left(bounds, value) for value in values).items():
            self._histogram._buckets[index].inc(count)


class CpuCounter:
    """The CPU time of this process and of its ended children, from now on."""

    __slots__ = ("_counter", "_spent")

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._spent = sum(os.times()[:4])

    def flush(self) -> None:
        spent_before, self._spent = self._spent, sum(os.times()[:4])
        self._counter.inc(self._spent - spent_before)


AnyBuffer = TypeVar("AnyBuffer", BufferedCounter, BufferedHistogram, CpuCounter)


class MetricBuffer:
    """The buffers of all metrics of one process."""

    def __init__(self) -> None:
        self._parts: list[BufferedCounter | BufferedHistogram | CpuCounter] = []

    def add(self, part: AnyBuffer) -> AnyBuffer:
        self._parts.append(part)
        return part

    def flush(self) -> None:
        """Send what was counted since the last call to Prometheus' client."""
        for part in self._parts:
            part.flush()


class HistoryCounts:
    """Counts of a gateway since its last report to the queue, for the history of `GET /v1/status`. For one event loop."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()

    def record_request(self, seconds: float | None, bundle: str = "") -> None:
        """Count an ended request. seconds: its duration if it was answered. bundle: the bundle that answered it."""
        self._counts["requests"] += 1
        if seconds is not None:
            name = f"{DURATION}{bucket(seconds * 1000)}"
            self._counts[name] += 1
            if bundle:
                self._counts[f"{name} {bundle}"] += 1

    def tokens(self, entered: int, left: int) -> None:
        """Count tokens that entered the network, and that left its last block."""
        self._counts["tokens_in"] += entered
        self._counts["tokens_out"] += left

    def take(self) -> dict[str, int]:
        """Return the counts since the last call, and reset them."""
        counts, self._counts = self._counts, collections.Counter()
        return counts

    def give_back(self, counts: Mapping[str, int]) -> None:
        """Keep counts that could not be reported for the next time."""
        self._counts.update(counts)


def bucket(milliseconds: float) -> int:
    """Return the index of the bucket; 0 holds everything up to 1 ms."""
    return max(0, math.ceil(math.log(max(milliseconds, 1.0)) / GROWTH))


def quantile(buckets: Mapping[int, int], share: float) -> float | None:
    """Return the milliseconds that `share` of the durations do not exceed. None if there are none."""
    left = share * sum(buckets.values())
    for index in sorted(buckets):
        left -= buckets[index]
        if left <= 0:
            return round(math.exp(GROWTH * (index - 0.5)), 3) if index else 1.0
    return None


class BundleMetrics:
    """A gateway's metrics with the labels of one bundle: a lookup of labels costs more than counting."""

    def __init__(self, metrics: GatewayMetrics, buffer: MetricBuffer, name: str, version: str) -> None:
        self.items = buffer.add(BufferedCounter(metrics.items.labels(name, version)))
        self.queued_jobs = buffer.add(BufferedCounter(metrics.queued_jobs.labels(name, version)))
        self.queued_bytes = buffer.add(BufferedCounter(metrics.queued_bytes.labels(name, version)))
        self.tokens_in = buffer.add(BufferedCounter(metrics.tokens_in.labels(name)))
        self.tokens_out = buffer.add(BufferedCounter(metrics.tokens_out.labels(name)))
        self.preprocess = buffer.add(BufferedHistogram(metrics.preprocess.labels(name)))
        self.queue_wait = buffer.add(BufferedHistogram(metrics.queue_wait.labels(name)))
        self.postprocess = buffer.add(BufferedHistogram(metrics.postprocess.labels(name)))


class GatewayMetrics:
    """Metrics of a gateway. `model` is the bundle's name once it is resolved, else empty: a client cannot invent labels."""

    def __init__(self, rejections: Iterable[str] = ()) -> None:
        """rejections: all reasons for which requests are rejected without being run."""
        self.history_counts = HistoryCounts()
        self.registry = registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        model = ["model"]
        self.requests = counter("opsin_requests", "Requests for inference, by outcome.", ["model", "version", "protocol", "outcome"])
        self.rejected = counter("opsin_rejected", "Requests refused without being run, by reason.", ["reason"])
        for reason in rejections:
            self.rejected.labels(reason)  # exists from the start, so that a rate over the first one is right
        self.media_refused = counter("opsin_media_refused", "Requests refused for what they sent, by part.", ["part", "reason"])
        self.webhooks = counter("opsin_webhooks", "Attempts to deliver webhooks, by outcome.", ["outcome"])
        for outcome in WEBHOOK_OUTCOMES:
            self.webhooks.labels(outcome)
        self.spans_dropped = counter(*SPANS_DROPPED)
        self.items = counter("opsin_items", "Items answered: images, clips, texts.", ["model", "version"])
        self.queued_jobs = counter("opsin_queued_jobs", "Jobs made for the queue.", ["model", "version"])
        self.queued_bytes = counter("opsin_queued_bytes", "Bytes of the arrays of jobs made for the queue.", ["model", "version"])
        self.tokens_in = counter("opsin_tokens_in", "Tokens that entered the network, special tokens included.", model)
        self.tokens_out = counter("opsin_tokens_out", "Tokens that left the last block, after merging.", model)
        duration_text = "From the first byte of a request to its response, answered requests only."
        self.request_duration = histogram("opsin_request_duration_seconds", duration_text, model, buckets=LATENCY)
        self.preprocess = histogram("opsin_preprocess_seconds", "Decoding and resizing the input of one request.", model, buckets=LATENCY)
        wait_text = "Round trip through the queue of a request's slowest item, less the time that the worker held it."
        self.queue_wait = histogram("opsin_queue_wait_seconds", wait_text, model, buckets=WAIT)
        self.postprocess = histogram("opsin_postprocess_seconds", "From the last reply to the response body.", model, buckets=WAIT)
        payload = histogram("opsin_payload_bytes", "Sizes of bodies.", ["direction"], buckets=BYTES)
        in_flight = gauge("opsin_in_flight", "Requests for inference in progress.", multiprocess_mode="livesum")
        waiting = gauge("opsin_waiting_for_worker", "Requests that wait for a first worker, unqueued.", multiprocess_mode="livesum")
        self.event_readers = gauge("opsin_event_readers", "Open streams of jobs' events.", multiprocess_mode="livesum")
        self.events = counter("opsin_events_sent", "Events sent, of streamed requests and of jobs.", ["event"])
        for event in EVENTS:
            self.events.labels(event)
        self._buffer = MetricBuffer()
        self._buffer.add(CpuCounter(counter("opsin_cpu_seconds", "CPU time of gateways.")))
        self.in_flight = self._buffer.add(BufferedCounter(in_flight))
        self.waiting_for_worker = self._buffer.add(BufferedCounter(waiting))
        self.payload_in, self.payload_out = (self._buffer.add(BufferedHistogram(payload.labels(direction))) for direction in ("in", "out"))
        self._bundle = cache(partial(BundleMetrics, self, self._buffer))
        self.duration_of = cache(lambda model: self._buffer.add(BufferedHistogram(self.request_duration.labels(model))))
        self.request_counter = cache(self._count_requests)
        """`requests` for model, version, protocol and outcome."""

    def _count_requests(self, model: str, version: str, protocol: str, outcome: str) -> BufferedCounter:
        self.requests.labels(model, version, protocol, "error")  # exists before the first error, so that a rate over it is right
        return self._buffer.add(BufferedCounter(self.requests.labels(model, version, protocol, outcome)))

    def bundle(self, spec: BundleSpec) -> BundleMetrics:
        """Return the metrics of one bundle."""
        return self._bundle(spec.name, spec.version)

    def count_answer(self, spec: BundleSpec, started_at: float, answer_bytes: int, payload_bytes: int | None = None) -> None:
        """Count a response. started_at: when its presenting began, in seconds of `time.perf_counter()`."""
        self.bundle(spec).postprocess.observe(time.perf_counter() - started_at)
        self.payload_out.observe(answer_bytes)
        if payload_bytes is not None:
            self.payload_in.observe(payload_bytes)

    def count_items(self, bundle: str, count: int) -> None:
        """Count finished items of asynchronous jobs of a bundle `name@version`."""
        name, _, version = bundle.partition("@")
        self.items.labels(name, version).inc(count)

    async def flush_forever(self) -> None:
        """Make buffered values available to the other gateways of this machine, whose metrics contain the sum."""
        while True:
            self._buffer.flush()
            await asyncio.sleep(FLUSH_INTERVAL_S)

    def render(self, live: Families) -> bytes:
        """Return the exposition text: counts (of all gateways of this machine) and `live` values."""
        self._buffer.flush()
        folder = os.environ.get(MULTIPROCESS_FOLDER)
        if folder is None:
            counted = self.registry
        else:
            counted = CollectorRegistry()
            _drop_dead_gauges(Path(folder))
            MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
        return generate_latest(counted) + generate_latest(build_info()) + generate_latest(live)


class WorkerMetrics:
    """Metrics of a worker. Batches are the worker's, requests the gateway's."""

    def __init__(self) -> None:
        self.not_ready_reason: Callable[[], str] = lambda: "starting"  # empty if the worker serves all of its bundles
        self.registry = registry = CollectorRegistry()
        self.notes = MetricBuffer()
        registry.register(FlushingCollector(self.notes))
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        labels = ["model", "version"]
        self.batches = counter("opsin_batches", "Batches run.", labels)
        self.cold_batches = counter("opsin_cold_batches", "Batches of a new shape: slower, and not used for estimates.", labels)
        self.out_of_memory = counter("opsin_out_of_memory", "Batches that did not fit into memory.", labels)
        self.backend = gauge("opsin_backend", "1 for the backend that runs a bundle's typical batches.", [*labels, "backend"])
        self.batch_size = histogram("opsin_batch_size", "Items in a batch.", labels, buckets=SIZE)
        self.batch_wait = histogram("opsin_batch_wait_seconds", "From the pull of an item to the start of its batch.", labels, buckets=WAIT)
        self.inference = histogram("opsin_inference_seconds", "One batch on the device.", labels, buckets=LATENCY)
        self.batch_budget = gauge("opsin_batch_budget", "The learned batch size.", labels)
        self.steps = counter("opsin_steps", "Steps taken by jobs of several steps.", labels)
        self.step_joins = counter("opsin_step_joins", "Jobs that took their first step.", labels)
        self.step_leaves = counter("opsin_step_leaves", "Jobs of several steps that left, by reason.", [*labels, "how"])
        self.resident_jobs = gauge("opsin_resident_jobs", "Jobs between two of their steps.", labels)
        self.state_bytes = gauge("opsin_state_bytes", "Memory that jobs of several steps keep, including ended ones.", labels)
        self.queries = counter("opsin_scene_queries", "Points of space that reconstructions queried.", labels)
        self.queries_saved = counter("opsin_scene_queries_saved", "Points of dense grids that they did not have to query.", labels)
        self.levels = counter("opsin_scene_levels", "Levels, from coarse to fine, of reconstructions.", labels)
        self.points = counter("opsin_scene_points", "Occupied cells that reconstructions found.", labels)
        self.video_counters = tuple(counter(f"opsin_video_{name}", text, labels) for name, text in VIDEO_COUNTERS.items())
        """Counters in the order of `models.systems.actions.job_stats.COUNTS`."""
        self.decoded_frames, self.watched_seconds = self.video_counters[-2:]
        self.sound_seconds = counter("opsin_sound_seconds", "Seconds of sound that were classified.", labels)
        self.watched_stages = counter("opsin_video_stage_seconds", "Seconds of work on videos and tracks, by stage.", [*labels, "stage"])
        self.failures = counter("opsin_failures", "Jobs that ended without a result.", ["model", "kind"])
        self.redeliveries = counter("opsin_redeliveries", "Jobs taken over from a dead worker.")
        self.dead_letters = counter("opsin_dead_letters", "Jobs given up and set aside.")
        progress_text = "Seconds since the last batch ended or, when idle, since the last poll of the queue."
        self.progress_age = gauge("opsin_worker_last_progress_age_seconds", progress_text)
        self.spans_dropped = counter(*SPANS_DROPPED)
        self.device_memory = gauge("opsin_device_memory_bytes", "Memory of the worker's GPU, by kind.", ["device", "kind"])


@dataclass(frozen=True, eq=False)
class FlushingCollector(Collector):
    """A collector that is registered first, and flushes all buffers before a registry's metrics are read."""

    buffer: MetricBuffer

    def collect(self) -> Iterable[Metric]:
        self.buffer.flush()
        return ()


@dataclass(frozen=True, eq=False)
class Families(Collector):
    """Metric families whose values were read just before."""

    families: tuple[Metric, ...]

    def collect(self) -> Iterable[Metric]:
        return self.families


@cache
def build_info(**versions: str) -> Families:
    """Return `opsin_build_info` of this process: the versions of Opsin, of Python, and of other packages by label."""
    value = {"version": version("opsin"), "python": platform.python_version(), **versions}
    return Families((InfoMetricFamily("opsin_build", "Versions of this process.", value=value),))


def _drop_dead_gauges(folder: Path) -> None:
    """Drop the gauges of gateways that were killed; their counts stay."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if not Path("/proc", pid).exists():
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
