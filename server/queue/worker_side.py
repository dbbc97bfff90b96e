"""The worker's end of the queue: announce, pull, reclaim, finish, hand back. Synchronous and thread-safe.

`announce`, `pull`, `reclaim`, `still_wanted`, `repository` and `janitor` raise `RedisAway` when Redis does not answer: wait a little and
call again.
`finish`, `hand_back` and `dead_letter` keep trying for `patience_s`, since nobody else has the results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import msgspec
import redis

from models.bundle import BundleSpec
from server.queue import keys, lua
from server.queue.connect import away_is_one_error, connect
from server.queue.delivery import Delivery, Ending
from server.queue.errors import RedisAway
from server.queue.job import PRIORITIES, Failure, Reply, UnknownVersion, WorkerInfo, decode_job, encode
from server.queue.repository import Repository

__all__ = ["Delivery", "WorkerQueue", "WorkerTimings"]

T = TypeVar("T")

MAX_BLOCK_S = 2.0


@dataclass(frozen=True)
class WorkerTimings:
    """Seconds; the defaults are the service's contract, tests shorten them."""

    key_ttl: float = 3.0
    """How long `worker:<id>` outlives its last refresh."""
    absence_settles: float = 6.0
    """After Redis was away the keys of living gateways and workers may have expired: only later does their absence mean death."""
    patience: float = 30.0
    """How long results are held while Redis is away."""
    priority_step: float = 5.0
    """A priority is worth this much waiting: a `low` job goes before a `high` one that came 2 steps later."""
    janitor_every: float = 30.0


DEATHS_ALLOWED = 3
MOST_DEAD_LETTERS = 100
JANITOR_KEYS = 500
JANITOR_ROUNDS = 20
RETRY_S = 0.05


class WorkerQueue:
    """One worker's view. Its id names the consumer and `worker:<id>`; a new process takes a new id."""

    def __init__(self, url: str, worker_id: str, timings: WorkerTimings | None = None) -> None:
        self.id = worker_id
        self._timings = timings or WorkerTimings()
        self._redis: Any = connect(url, blocking=MAX_BLOCK_S)
        self._script = {
            name: self._redis.register_script(lua.source(name))
            for name in ("announce", "create_groups", "repository", "pull", "reclaim", "finish", "hand_back", "janitor")
        }
        self._specs: dict[str, bytes] = {}
        self._held: set[tuple[str, str]] = set()
        """(stream, entry id) of what is in this worker's hands."""
        self._overlooked = False
        """Whether more may be pending under this worker's name than what it holds."""
        self._absence_counts_from = 0.0
        self._clock_offset_ms: float | None = None

    # Presence

    def announce(self, info: WorkerInfo) -> None:
        """To be called every second by a thread that proves progress: `worker:<id>` is what tells the living from the dead."""
        alive: list[str | int | bytes] = [self.id, encode(info), int(self._timings.key_ttl * 1000)]
        known = self._once(lambda: self._script["announce"](keys=[], args=alive))
        if not known and self._specs:
            # the first time, or Redis has forgotten us: it may have lost the specs too
            specs = [part for digest, data in self._specs.items() for part in (digest, data)]
            self._once(lambda: self._script["announce"](keys=[], args=[*alive, *specs]))

    def publish_spec(self, spec: BundleSpec) -> str:
        """Make `bundle.json` readable for gateways under its SHA-256, which is returned."""
        digest, data = spec.digest(), spec.to_bytes()
        self._specs[digest] = data
        self._once(lambda: self._redis.set(keys.spec(digest), data))
        return digest

    def withdraw(self) -> None:
        """Delete `worker:<id>`: others may claim its jobs at once. Also called by a supervisor that saw the process end."""
        self._once(lambda: self._redis.delete(keys.worker(self.id)))

    def repository(self) -> Repository:
        """What operators want loaded, and the number of their latest change."""
        revision, states = self._once(lambda: self._script["repository"]())
        return Repository.of(revision, states)

    def close(self) -> None:
        self._redis.close()

    # Taking jobs

    def pull(self, bundles: Sequence[str], max_items: int, block_ms: int = 0) -> list[Delivery]:
        """At most `max_items` jobs of these bundles (`name@version`), the most urgent first.

        If there is none it waits for one up to `block_ms` (≤ 2000).
        What is too late, cancelled, unreadable or of a dead gateway is ended here and not returned.
        """
        if max_items <= 0 or not bundles:
            return []
        streams = [stream for bundle in bundles for stream in keys.streams(bundle)]
        if self._overlooked and (found := self._find_overlooked(streams, max_items)):
            return found
        ranks = list(range(len(PRIORITIES))) * len(bundles)
        step = int(self._timings.priority_step * 1000)
        arguments: list[str | int] = [self.id, max_items, step, self._absence_counts(), *ranks]
        now_ms, rows = self._taking(lambda: self._script["pull"](keys=streams, args=arguments))
        self._set_clock(now_ms)
        deliveries = self._accept(rows, alone=False)
        if deliveries or rows or block_ms <= 0:
            return deliveries
        return self._wait(streams, max_items, min(block_ms, int(MAX_BLOCK_S * 1000)))

    def reclaim(self, bundles: Sequence[str]) -> Delivery | None:
        """One job of a dead worker, to be run alone and at once. None: there is none.

        Each death of a worker that ran it alone is counted; after the third the job becomes a dead letter and its client is told.
        """
        if self._absence_counts() == "0":
            return None
        streams = [stream for bundle in bundles for stream in keys.streams(bundle)]
        while True:
            answer = self._taking(lambda: self._script["reclaim"](keys=streams, args=[self.id, "1"]))
            self._set_clock(answer[0])
            if len(answer) == 1:
                return None
            _, row, deaths, dead_worker = answer
            deliveries = self._accept([row], alone=True)
            if not deliveries:
                continue
            if deaths < DEATHS_ALLOWED:
                return deliveries[0]
            self.dead_letter(deliveries[0], f"{deaths} workers died while they ran this job alone, the last one was {dead_worker.decode()}")

    def still_wanted(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Right before the batch: those whose deadline has not passed and whose client still waits. The others are ended here."""
        if not deliveries:
            return []
        names = [keys.cancel(delivery.job.id) for delivery in deliveries]
        cancelled = self._once(lambda: self._redis.mget(names))
        now_ms = self._now_ms()
        wanted, endings = [], []
        for delivery, mark in zip(deliveries, cancelled, strict=True):
            if mark is not None:
                endings.append(Ending.of(delivery, None))
            elif now_ms is not None and delivery.job.deadline_ms <= now_ms:
                endings.append(Ending.of(delivery, self._failed(delivery.job.id, "deadline", "the deadline passed in the queue")))
            else:
                wanted.append(delivery)
        self._end(endings)
        return wanted

    # Letting go of them

    def finish(self, results: Sequence[tuple[Delivery, Reply]]) -> list[bool]:
        """Answer jobs; one call per batch, as the statistics count calls. False: another worker was first, the result is dropped."""
        return self._end([Ending.of(delivery, reply) for delivery, reply in results])

    def dead_letter(self, delivery: Delivery, reason: str, kind: str = "worker-crashed") -> bool:
        """Answer 500 and keep a copy of the job in the `dead` stream. `kind`: `worker-crashed` or `model-error`."""
        return self._end([Ending.of(delivery, self._failed(delivery.job.id, kind, reason), dead_letter=reason)])[0]

    def hand_back(self, deliveries: Sequence[Delivery]) -> None:
        """Give unfinished jobs to the other workers at once; no death is counted. Those that must run alone go on alone."""
        if not deliveries:
            return
        arguments: list[str] = [self.id]
        for delivery in deliveries:
            high = keys.stream(keys.bundle_of(delivery.stream), "high")
            arguments += [delivery.stream, delivery.entry_id, high, "1" if delivery.alone else "0"]
        self._patiently(lambda: self._script["hand_back"](keys=[], args=arguments))
        self._held.difference_update((delivery.stream, delivery.entry_id) for delivery in deliveries)

    # Housekeeping

    def janitor(self) -> bool:
        """Remove what dead processes left behind. Call it often: one worker does it, every 30 s. True if it was this one."""
        every = int(self._timings.janitor_every * 1000)
        if not self._once(lambda: self._redis.set(keys.JANITOR, self.id, nx=True, px=every)):
            return False
        cursor: bytes = b"0"
        for _ in range(JANITOR_ROUNDS):
            cursor = self._once(lambda at=cursor: self._script["janitor"](keys=[], args=[at, JANITOR_KEYS]))  # type: ignore[misc]
            if cursor == b"0":
                break
        return True

    # What is behind them

    def _wait(self, streams: list[str], max_items: int, block_ms: int) -> list[Delivery]:
        """Block until a job comes. It is fresh, so only the batch itself looks at cancel and gateway again."""
        rows = self._with_blobs(self._read(streams, ">", "COUNT", max_items, "BLOCK", block_ms))
        # COUNT holds for each stream, and several may have filled between the look and the wait: the rest waits for the next pull
        self._overlooked = len(rows) > max_items
        return self._accept(rows[:max_items], alone=False)

    def _find_overlooked(self, streams: list[str], max_items: int) -> list[Delivery]:
        """Jobs that are pending under our name but not in our hands: most likely Redis gave them in an answer that never arrived.

        That may have been the answer to a claim, so they run alone.
        """
        held = self._held.copy()
        rows = [row for row in self._read(streams, "0") if (row[0].decode(), row[1].decode()) not in held]
        self._overlooked = len(rows) > max_items
        return self._accept(self._with_blobs(rows[:max_items]), alone=True)

    def _read(self, streams: list[str], after: str, *options: str | int) -> list[list[Any]]:
        """XREADGROUP, as rows of the scripts: stream, entry id, job id, gateway, bytes, reason to drop it, message."""
        command = ["XREADGROUP", "GROUP", keys.GROUP, self.id, *options, "STREAMS", *streams, *[after] * len(streams)]

        def read() -> Any:
            try:
                return self._redis.execute_command(*command)
            except redis.exceptions.ResponseError as error:
                if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                    raise
            # a new bundle, or a Redis that restarted empty
            self._script["create_groups"](keys=streams, args=[])
            return self._redis.execute_command(*command)

        answer = self._taking(read)
        return [
            [stream, entry_id, fields.get(b"id", b""), fields.get(b"gw", b""), int(fields.get(b"bytes", 0)), b"", fields.get(b"job", b"")]
            for stream, entries in answer or []
            for entry_id, fields in entries
            if fields  # deleted by hand while it was pending
        ]

    def _with_blobs(self, rows: list[list[Any]]) -> list[list[Any]]:
        large = [row for row in rows if not row[6]]
        if large:
            blobs = self._taking(lambda: self._redis.mget([b"blob:" + row[2] for row in large]))
            for row, blob in zip(large, blobs, strict=True):
                row[5:] = (b"", blob) if blob else (b"payload", b"")
        return rows

    def _accept(self, rows: list[list[Any]], *, alone: bool) -> list[Delivery]:
        """Deliveries from the scripts' rows; what must not or cannot run is ended."""
        pulled_at = time.monotonic()
        deliveries, endings = [], []
        for stream_key, entry_key, job_id, gateway, nbytes, reason, message in rows:
            stream, entry_id, id_ = stream_key.decode(), entry_key.decode(), job_id.decode()
            reply: Reply | None = None
            if not reason:
                try:
                    delivery = Delivery(decode_job(message), stream, entry_id, alone, pulled_at, int(nbytes))
                except (UnknownVersion, msgspec.MsgspecError) as error:
                    reply = self._failed(id_, "unknown-version", f"worker {self.id} cannot read the job: {error}")
                else:
                    self._held.add((stream, entry_id))
                    deliveries.append(delivery)
                    continue
            elif reason == b"deadline":
                reply = self._failed(id_, "deadline", "the deadline passed in the queue")
            silent = reason in (b"payload", b"gateway")
            endings.append(Ending(stream, entry_id, id_, gateway.decode(), int(nbytes), reply, silent=silent))
        self._end(endings)
        return deliveries

    def _end(self, endings: Sequence[Ending]) -> list[bool]:
        """One script call for each bundle: usually one."""
        ended: list[bool] = []
        for bundle, group in groupby(endings, key=lambda ending: ending.bundle):
            batch = list(group)
            arguments: list[Any] = [self.id, max(ending.batch_size for ending in batch), MOST_DEAD_LETTERS]
            for ending in batch:
                arguments += ending.arguments()
            ended += map(bool, self._patiently(lambda b=bundle, a=arguments: self._script["finish"](keys=[keys.statistics(b)], args=a)))  # type: ignore[misc]
        self._held.difference_update((ending.stream, ending.entry_id) for ending in endings)
        return ended

    def _failed(self, job_id: str, kind: Any, detail: str) -> Reply:
        return Reply(id=job_id, worker=self.id, failure=Failure(kind=kind, detail=detail))

    def _set_clock(self, redis_ms: int) -> None:
        self._clock_offset_ms = redis_ms - time.monotonic() * 1000

    def _now_ms(self) -> float | None:
        """Redis' clock, as of the last pull. None before it."""
        return None if self._clock_offset_ms is None else time.monotonic() * 1000 + self._clock_offset_ms

    def _absence_counts(self) -> str:
        return "1" if time.monotonic() >= self._absence_counts_from else "0"

    def _taking(self, call: Callable[[], T]) -> T:
        """A call that moves jobs into our hands: if its answer is lost, we look for them later."""
        try:
            return self._once(call)
        except RedisAway:
            self._overlooked = True
            raise

    def _once(self, call: Callable[[], T]) -> T:
        try:
            with away_is_one_error():
                return call()
        except RedisAway:
            self._absence_counts_from = time.monotonic() + self._timings.absence_settles
            raise

    def _patiently(self, call: Callable[[], T]) -> T:
        until = time.monotonic() + self._timings.patience
        while True:
            try:
                return self._once(call)
            except RedisAway:
                if time.monotonic() > until:
                    raise
                time.sleep(RETRY_S)
