"""Counts of held items, bytes and work stay right however jobs come and go: random sequences against the sums of all `job:<id>`."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
import redis

from server.queue.gateway.dispatcher import Dispatcher
from server.queue.script import Refused
from server.queue.worker.delivery import Delivery
from tests.queue.test_shares import record, submit
from tests.support.queue import LASTING_WORKER, QUEUE, WorkerQueue, announce, echo, gateway, ping, worker_queue
from tests.support.waiting import eventually_async

OWNERS = ("", "ann", "bob", "eve")
TURNS = 60


def read_counts(db: redis.Redis) -> tuple[int, int, dict[str, list[int]]]:
    """Return the bytes, the work, and the jobs, bytes and work of each owner."""
    owners = {owner: list(map(int, sums.split()[:3])) for owner, sums in db.hgetall("queue:owners").items()}
    return int(db.get("queue:bytes") or 0), int(db.get("queue:work") or 0), owners


def sum_jobs(db: redis.Redis) -> tuple[int, int, dict[str, list[int]]]:
    """Compute what `read_counts` returns from the key of each job."""
    nbytes = work = 0
    owners: dict[str, list[int]] = {}
    for key in db.scan_iter("job:*"):
        _, _, owner, job_work, job_bytes, _ = db.get(key).split()
        nbytes, work = nbytes + int(job_bytes), work + int(job_work)
        if owner != "-":
            sums = owners.setdefault(owner, [0, 0, 0])
            owners[owner] = [sums[0] + 1, sums[1] + int(job_bytes), sums[2] + int(job_work)]
    return nbytes, work, owners


class World:
    """A gateway, and workers that live until they are killed."""

    def __init__(self, url: str, db: redis.Redis, us: Dispatcher, chance: random.Random) -> None:
        self._url, self._db, self._us, self._chance = url, db, us, chance
        self._requests: list[asyncio.Task[Any]] = []
        self._records: list[str] = []
        self._workers: list[tuple[WorkerQueue, list[Delivery]]] = []
        self._born = 0
        self.done: Counter[str] = Counter()
        self.start_worker()

    def start_worker(self) -> None:
        worker = worker_queue(self._url, f"worker-{self._born}", LASTING_WORKER)
        self._born += 1
        announce(worker)
        self._workers.append((worker, []))

    async def turn(self) -> None:
        common = (self.ask, self.ask_later, self.pull, self.finish)
        rare = (self.hand_back, self.give_up, self.kill, self.reclaim, self.leave, self.cancel_record, self.lose, self.janitor)
        weights = [3] * len(common) + [1] * len(rare)
        [step] = self._chance.choices((*common, *rare), weights)
        self.done[step.__name__] += 1
        await step()

    async def ask(self) -> None:
        try:
            self._requests.append(await submit(self._us, **self._draw_request()))
        except Refused:
            self.done["refused"] += 1

    async def ask_later(self) -> None:
        try:
            self._records.append(await record(self._us, **self._draw_request()))
        except Refused:
            self.done["refused"] += 1

    def _draw_request(self) -> dict[str, Any]:
        draw = self._chance
        ballast = bytearray(draw.choice((10, 1000, 300_000)))
        return {
            "owner": draw.choice(OWNERS),
            "items": draw.randint(1, 4),
            "work_ms": draw.randint(0, 40_000),
            "takes_long": draw.random() < 0.3,
            "ballast": ballast,
        }

    def _worker(self) -> tuple[WorkerQueue, list[Delivery]]:
        return self._chance.choice(self._workers)

    async def pull(self) -> None:
        worker, hands = self._worker()
        hands += await asyncio.to_thread(worker.pull, [QUEUE], self._chance.randint(1, 4))

    async def finish(self) -> None:
        worker, hands = self._worker()
        worker.acks.finish([(delivery, echo(worker, delivery)) for delivery in hands])
        hands.clear()

    async def hand_back(self) -> None:
        worker, hands = self._worker()
        worker.intake.return_to_queue(hands)
        hands.clear()

    async def give_up(self) -> None:
        worker, hands = self._worker()
        if hands:
            worker.acks.dead_letter(hands.pop(), "it is no good")

    async def kill(self) -> None:
        worker, _ = self._workers.pop(self._chance.randrange(len(self._workers)))
        worker.withdraw()
        worker.close()
        self.start_worker()

    async def reclaim(self) -> None:
        worker, hands = self._worker()
        delivery = await asyncio.to_thread(worker.intake.reclaim, [QUEUE])
        hands += [delivery] if delivery is not None else []

    async def leave(self) -> None:
        """Close the connection of a client."""
        if self._requests:
            request = self._requests.pop(self._chance.randrange(len(self._requests)))
            request.cancel()
            await asyncio.wait([request])
            await ping(self._us)

    async def cancel_record(self) -> None:
        if self._records:
            await self._us.records.cancel(self._chance.choice(self._records))

    async def lose(self) -> None:
        """Delete a job from Redis: its gateway or a sweep queues it again, before or after the janitor counts."""
        keys = sorted(self._db.scan_iter("job:*"))
        if keys:
            key = self._chance.choice(keys)
            stream, entry, *_ = self._db.get(key).split()
            self._db.delete(key)
            self._db.xdel(stream, entry)
            await self.janitor()

    async def janitor(self) -> None:
        self._db.delete("janitor")
        assert self._workers[0][0].janitor()

    async def end(self) -> None:
        """Answer all jobs that are left."""
        for worker, hands in self._workers:
            worker.intake.return_to_queue(hands)
            hands.clear()
        worker = self._workers[0][0]

        def all_are_answered() -> bool:
            found = worker.pull([QUEUE], 16)
            alone = worker.intake.reclaim([QUEUE]) if not found else None
            worker.acks.finish([(delivery, echo(worker, delivery)) for delivery in [*found, *([alone] if alone else [])]])
            return all(request.done() for request in self._requests) and not self._db.exists("records:open")

        await eventually_async(lambda: asyncio.to_thread(all_are_answered))
        await asyncio.gather(*self._requests, return_exceptions=True)
        for worker, _ in self._workers:
            worker.close()


@pytest.mark.parametrize("seed", range(4))
async def test_counts_equal_held_jobs_after_every_step(url: str, db: redis.Redis, seed: int) -> None:
    async with gateway(url, queue_max_items=40, queue_max_bytes=20_000_000) as us:
        world = World(url, db, us, random.Random(seed))
        for _ in range(TURNS):
            await world.turn()
            await eventually_async(lambda: read_counts(db) == sum_jobs(db))
        await world.end()
        await eventually_async(lambda: read_counts(db) == (0, 0, {}) and not db.exists("queue:jobs"))
