"""What a gateway has counted since it last told the queue, for the history of `GET /v1/status`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

GROWTH = math.log(1.1)
"""Each bucket of durations is a tenth longer than the one before, so quantiles are right within 5 %."""
DURATION = "d"
"""Prefix of a bucket's name: `d12` of all requests, `d12 flags@1.0.0` of a bundle's requests that were waited for, and jobs."""


class Tally:
    """For one event loop."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def ended(self, seconds: float | None, bundle: str = "") -> None:
        """A request has ended; `seconds`: how long an answered one took; `bundle`: whose answer it was."""
        self._counts["requests"] += 1
        if seconds is not None:
            name = f"{DURATION}{bucket(seconds * 1000)}"
            self._counts[name] += 1
            if bundle:
                self._counts[f"{name} {bundle}"] += 1

    def tokens(self, entered: int, left: int) -> None:
        """Tokens that entered the network, and that left its last block."""
        self._counts["tokens_in"] += entered
        self._counts["tokens_out"] += left

    def take(self) -> dict[str, int]:
        """All that was counted since the last call."""
        counts, self._counts = self._counts, Counter()
        return counts

    def give_back(self, counts: Mapping[str, int]) -> None:
        """What could not be told is told next time."""
        self._counts.update(counts)


def bucket(milliseconds: float) -> int:
    """Index of the bucket; 0 holds everything up to 1 ms."""
    return max(0, math.ceil(math.log(max(milliseconds, 1.0)) / GROWTH))


def quantile(buckets: Mapping[int, int], share: float) -> float | None:
    """Milliseconds that `share` of the durations do not exceed; None if there are none."""
    left = share * sum(buckets.values())
    for index in sorted(buckets):
        left -= buckets[index]
        if left <= 0:
            return round(math.exp(GROWTH * (index - 0.5)), 3) if index else 1.0
    return None
