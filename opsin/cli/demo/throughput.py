"""A short measured burst of requests: how many pictures a second a running service answers, and how long its network computed meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx2

from opsin.async_client import AsyncClient

CLIENTS = 4
PICTURES_PER_REQUEST = 8
"""Together enough to fill a worker's batches, in few enough requests that this process takes little of the machine that it measures."""


@dataclass(frozen=True)
class Network:
    """Time that a model's batches took on their devices, by the service's own statistics."""

    batches: int
    seconds: float
    """Those of batches that ran side by side count each."""

    def since(self, before: Network) -> Network:
        return Network(self.batches - before.batches, self.seconds - before.seconds)


@dataclass(frozen=True)
class Round:
    """One merge option under load for a while."""

    pictures: int
    seconds: float
    network: Network
    """The network's work in that time."""


@dataclass(frozen=True)
class Burst:
    """All rounds of one merge option; figures are medians."""

    rounds: tuple[Round, ...]

    @property
    def rates(self) -> list[float]:
        """Pictures per second through HTTP, one figure a round, ascending."""
        return sorted(round.pictures / round.seconds for round in self.rounds)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def milliseconds(self) -> float:
        """Milliseconds that the network spent on an image."""
        return statistics.median(1000 * round.network.seconds / round.pictures for round in self.rounds)

    @property
    def batches_at_a_time(self) -> float:
        """How many batches the network was computing on average, at most one per slot of a worker; the rest went to everything else."""
        return statistics.median(round.network.seconds / round.seconds for round in self.rounds)

    @property
    def batch_size(self) -> float:
        """Pictures in a batch, on average."""
        return statistics.median(round.pictures / max(1, round.network.batches) for round in self.rounds)


def compare(
    url: str,
    model: str,
    pictures: Sequence[bytes],
    merges: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Burst]:
    """Measure each merge option of `model` (`name@version`) for `rounds` rounds of `seconds`, in turn: a drifting machine favours none.

    One round of each goes before to warm up; `tick` is called after every round. Raises OpsinError or httpx2.HTTPError if a request fails.
    """

    async def measure() -> dict[str, Burst]:
        measured: dict[str, list[Round]] = {merge: [] for merge in merges}
        async with AsyncClient(url) as client, httpx2.AsyncClient(base_url=url) as http:
            for number, merge in itertools.product(range(rounds + 1), merges):
                before = await _network(http, model)
                answered, elapsed = await _ask(client, model, pictures, merge, seconds)
                if number:
                    measured[merge].append(Round(answered, elapsed, (await _network(http, model)).since(before)))
                tick()
        return {merge: Burst(tuple(taken)) for merge, taken in measured.items()}

    return asyncio.run(measure())


async def _ask(client: AsyncClient, model: str, pictures: Sequence[bytes], merge: str, seconds: float) -> tuple[int, float]:
    """Pictures answered, and the seconds until the last of them was."""
    supply = itertools.cycle(pictures)
    start = time.perf_counter()

    async def ask() -> int:
        answered = 0
        while time.perf_counter() < start + seconds:
            answered += len(await client.classify([next(supply) for _ in range(PICTURES_PER_REQUEST)], model=model, merge=merge))
        return answered

    counts = await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    return sum(counts), time.perf_counter() - start


async def _network(http: httpx2.AsyncClient, model: str) -> Network:
    """Since the queue was started."""
    name, _, version = model.partition("@")
    response = (await http.get(f"/v2/models/{name}/versions/{version}/stats")).raise_for_status()
    took: list[dict[str, int]] = [batch["compute_infer"] for batch in response.json()["model_stats"][0]["batch_stats"]]
    return Network(sum(each["count"] for each in took), sum(each["ns"] for each in took) / 1e9)
