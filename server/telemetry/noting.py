"""Counting that costs next to nothing: what happens is noted in plain numbers, and given to Prometheus' client together.

Each of its values has a lock of its own (behind several gateways also a place in a file), and a histogram has two for each observation:
at a thousand requests a second that is a tenth of a gateway's time. One thread notes, any may give.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from typing import Protocol, TypeVar

from prometheus_client import Counter, Gauge, Histogram


class Noted(Protocol):
    def give(self) -> None:
        """To Prometheus' client, what was noted since the last call."""


AnyNoted = TypeVar("AnyNoted", bound=Noted)


class Amount:
    """Of one counter."""

    __slots__ = ("_amount", "_counter")

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._amount = 0

    def inc(self, amount: int = 1) -> None:
        self._amount += amount

    def give(self) -> None:
        amount, self._amount = self._amount, 0
        if amount:
            self._counter.inc(amount)


class Level:
    """Of one gauge."""

    __slots__ = ("_gauge", "value")

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self.value = 0

    def give(self) -> None:
        self._gauge.set(self.value)


class Observations:
    """Of one histogram."""

    __slots__ = ("_histogram", "_values", "observe")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._values: list[float] = []
        self.observe = self._values.append

    def give(self) -> None:
        """As many calls of `Histogram.observe` would."""
        values = self._values[:]
        if not values:
            return
        del self._values[: len(values)]  # another thread may have added to them
        bounds = self._histogram._upper_bounds
        self._histogram._sum.inc(sum(values))
        for index, count in Tally(bisect_left(bounds, value) for value in values).items():
            self._histogram._buckets[index].inc(count)


class Notes:
    """All that one process notes of its metrics."""

    def __init__(self) -> None:
        self._noted: list[Noted] = []

    def amount(self, counter: Counter) -> Amount:
        return self._kept(Amount(counter))

    def level(self, gauge: Gauge) -> Level:
        return self._kept(Level(gauge))

    def observations(self, histogram: Histogram) -> Observations:
        return self._kept(Observations(histogram))

    def give(self) -> None:
        for noted in self._noted:
            noted.give()

    def _kept(self, noted: AnyNoted) -> AnyNoted:
        self._noted.append(noted)
        return noted
