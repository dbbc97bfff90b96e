"""Metrics of noted events are those of events that are counted at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from server.telemetry.metrics import BufferedCounter, BufferedHistogram

VALUES = (0.05, 0.1, 0.2, 0.5, 0.7, 1.0, 3.0, 0.0)


@dataclass
class Metrics:
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.requests = Counter("requests", "Of clients.", registry=self.registry)
        self.waiting = Gauge("waiting", "Requests.", registry=self.registry)
        self.seconds = Histogram("seconds", "Of requests.", buckets=(0.1, 0.5, 1.0), registry=self.registry)

    def text(self) -> list[str]:
        return [line for line in generate_latest(self.registry).decode().splitlines() if "_created" not in line]


def test_the_text_is_that_of_counting_at_once() -> None:
    at_once, later = Metrics(), Metrics()
    requests, waiting, seconds = BufferedCounter(later.requests), BufferedCounter(later.waiting), BufferedHistogram(later.seconds)
    for _ in range(2):
        for value in VALUES:
            at_once.requests.inc(3)
            at_once.seconds.observe(value)
            requests.inc(3)
            seconds.observe(value)
            waiting.inc(1)
        at_once.waiting.inc(len(VALUES))
        for noted in (requests, waiting, seconds):
            noted.flush()
        assert later.text() == at_once.text()
