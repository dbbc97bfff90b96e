"""Measurement of throughput under load: images per second through HTTP, and the time that the network computed."""

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
IMAGES_PER_REQUEST = 8
"""Enough to fill a worker's batches with CLIENTS, in few requests, so that this process uses little of the machine that it measures."""


@dataclass(frozen=True)
class MeasuredRound:
    """One measured round with one merge option."""

    images: int
    seconds: float
    batches: int
    network_s: float
    """Sum of the times that the batches took on their devices; batches that ran at the same time each count."""


@dataclass(frozen=True)
class MergeThroughput:
    """The throughput of one merge option over all rounds; figures are medians."""

    rounds: tuple[MeasuredRound, ...]

    @property
    def rates(self) -> list[float]:
        """Images per second through HTTP, one figure per round, ascending."""
        return sorted(round.images / round.seconds for round in self.rounds)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def milliseconds(self) -> float:
        """Network time per image in milliseconds."""
        return statistics.median(1000 * round.network_s / round.images for round in self.rounds)

    @property
    def batches_at_a_time(self) -> float:
        """Average number of batches that were computed at a time, at most one per slot of a worker."""
        return statistics.median(round.network_s / round.seconds for round in self.rounds)

    @property
    def batch_size(self) -> float:
        """Average number of images in a batch."""
        return statistics.median(round.images / max(1, round.batches) for round in self.rounds)


def compare(
    url: str,
    model: str,
    images: Sequence[bytes],
    merges: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, MergeThroughput]:
    """Measure each merge option of `model` (`name@version`) for `rounds` rounds of `seconds`.

    The options alternate, so that slow drifts affect all of them equally. One extra round of each warms up; `tick` is called after every
    round. Raises OpsinError or httpx2.HTTPError if a request fails.
    """

    async def measure() -> dict[str, MergeThroughput]:
        measured: dict[str, list[MeasuredRound]] = {merge: [] for merge in merges}
        async with AsyncClient(url) as client, httpx2.AsyncClient(base_url=url) as http:
            for number, merge in itertools.product(range(rounds + 1), merges):
                batches, network_s = await _read_batches(http, model)
                answer_count, elapsed = await _send_load(client, model, images, merge, seconds)
                batches_after, network_s_after = await _read_batches(http, model)
                if number:
                    measured[merge].append(MeasuredRound(answer_count, elapsed, batches_after - batches, network_s_after - network_s))
                tick()
        return {merge: MergeThroughput(tuple(taken)) for merge, taken in measured.items()}

    return asyncio.run(measure())


async def _send_load(client: AsyncClient, model: str, images: Sequence[bytes], merge: str, seconds: float) -> tuple[int, float]:
    """Send load, and return the number of answered images and the elapsed seconds."""
    supply = itertools.cycle(images)
    start = time.perf_counter()

    async def send_requests() -> int:
        answer_count = 0
        while time.perf_counter() < start + seconds:
            answer_count += len(await client.classify([next(supply) for _ in range(IMAGES_PER_REQUEST)], model=model, merge=merge))
        return answer_count

    counts = await asyncio.gather(*(send_requests() for _ in range(CLIENTS)))
    return sum(counts), time.perf_counter() - start


async def _read_batches(http: httpx2.AsyncClient, model: str) -> tuple[int, float]:
    """Read the number of a model's batches since the queue was started, and the sum of their seconds."""
    name, _, version = model.partition("@")
    response = (await http.get(f"/v2/models/{name}/versions/{version}/stats")).raise_for_status()
    took: list[dict[str, int]] = [batch["compute_infer"] for batch in response.json()["model_stats"][0]["batch_stats"]]
    return sum(each["count"] for each in took), sum(each["ns"] for each in took) / 1e9
