"""A short measured burst of requests: how many pictures a second a running service answers."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opsin.client import AsyncClient

CLIENTS = 16
"""Requests in flight: enough to fill the batches of one worker."""


@dataclass(frozen=True)
class Round:
    """What was answered within `seconds`, one picture a request."""

    pictures: int
    seconds: float
    network_seconds: float
    """Of these the network computed so long: the sum over the pictures of their shares in their batches."""

    @property
    def rate(self) -> float:
        """Pictures per second through HTTP."""
        return self.pictures / self.seconds

    @property
    def network_rate(self) -> float:
        """Pictures per second of the network alone."""
        return self.pictures / self.network_seconds


@dataclass(frozen=True)
class Burst:
    """All rounds of one merge option."""

    rounds: tuple[Round, ...]

    @property
    def rates(self) -> list[float]:
        return sorted(round.rate for round in self.rounds)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def network_rate(self) -> float:
        return statistics.median(round.network_rate for round in self.rounds)

    @property
    def network_share(self) -> float:
        """The part of the time in which the network computed; the rest is decoding, HTTP, queue and this client."""
        return statistics.median(round.network_seconds / round.seconds for round in self.rounds)


def compare(
    url: str, pictures: Sequence[bytes], merges: Sequence[str], *, rounds: int, seconds: float, tick: Callable[[], None]
) -> dict[str, Burst]:
    """Measure each merge option `rounds` times for `seconds`, in turn, so that a drifting machine favours none; one round of each warms up.

    `tick` is called after each of the `(rounds + 1) * len(merges)` rounds. Raises OpsinError if a request fails.
    """

    async def measure() -> dict[str, Burst]:
        measured: dict[str, list[Round]] = {merge: [] for merge in merges}
        async with AsyncClient(url) as client:
            for number, merge in itertools.product(range(rounds + 1), merges):
                one = await _round(client, pictures, merge, seconds)
                if number:
                    measured[merge].append(one)
                tick()
        return {merge: Burst(tuple(taken)) for merge, taken in measured.items()}

    return asyncio.run(measure())


async def _round(client: AsyncClient, pictures: Sequence[bytes], merge: str, seconds: float) -> Round:
    supply = itertools.cycle(pictures)
    answered, network_seconds = 0, 0.0
    start = time.perf_counter()
    end = start + seconds

    async def ask() -> None:
        nonlocal answered, network_seconds
        while time.perf_counter() < end:
            found = await client.classify(next(supply), merge=merge)
            if time.perf_counter() < end:
                answered += 1
                network_seconds += found.timing.inference_ms / found.timing.batch_size / 1000

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(ask())
    return Round(answered, seconds, network_seconds)
