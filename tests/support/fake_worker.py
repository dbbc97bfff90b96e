"""Fake worker with a predictable model: an image's label is its redness in ten steps."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec
import numpy as np
import redis
from PIL import Image

from models.bundle import BundleSpec
from models.bundle_schema import FileDigest, Preprocess, Rung
from server.queue import keys
from server.queue.connect import RedisUnavailable
from server.queue.messages import Array, Failure, QueuedJob, Reply, ServedBundle, WorkerInfo, WorkerTiming
from server.queue.worker.delivery import Delivery
from tests.support.images import encode
from tests.support.queue import WorkerQueue
from tests.support.redis import CellRedis
from tests.support.waiting import WAIT_S, eventually

CLASSES = 10
TOKENS = 17
DEPTH = 4


def make_spec(
    name: str = "reds", version: str = "1", default_rung: str | None = None, labels: int = CLASSES, image_size: int = 8
) -> BundleSpec:
    return BundleSpec(
        name=name,
        version=version,
        task="classify",
        architecture="vit",
        config={"depth": DEPTH},
        preprocess=Preprocess(image_size=image_size, short_side=image_size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        labels=[f"red {step}" for step in range(labels)],
        license="CC0-1.0",
        description="Ten shades of red",
        trained_on="plain pictures",
        note="For tests.",
        ladder=[Rung(name="gentle", schedule=1), Rung(name="strong", schedule=[4, 2])],
        default_rung=default_rung,
        weights=FileDigest(sha256="0" * 64, bytes=1),
    )


def picture(step: int, size: tuple[int, int] = (16, 12), kind: str = "PNG") -> bytes:
    """Draw an image whose label is `red {step}`."""
    return encode(Image.new("RGB", size, (step * 28, 40, 90)), kind)


def unbearable() -> bytes:
    """Draw an image on which the test's model fails."""
    return encode(Image.new("RGB", (16, 12), (0, 255, 0)))


def answer(job: QueuedJob, batch_size: int = 1) -> Reply:
    """Return the answer of the test's model to a job."""
    red, green = (job.arrays["pixels"].to_numpy()[..., channel].mean() for channel in (0, 1))
    if green > 200:
        return Reply(id=job.id, worker="test", failure=Failure(kind="model-error", detail="the model does not like this"))
    logits = -np.abs(red - 28 * np.arange(CLASSES)).astype(np.float32) / 10
    tokens = np.array([TOKENS, TOKENS - sum(job.options["merge"])], np.int32)
    return Reply(
        id=job.id,
        worker="test",
        arrays={"logits": Array.from_numpy(logits), "tokens": Array.from_numpy(tokens)},
        timing=WorkerTiming(batch_wait_ms=0.5, inference_ms=1.5, worker_ms=2.0, batch_size=batch_size),
    )


MANY_LABELS = 100_000


def answer_at_length(job: QueuedJob) -> Reply:
    """Return the same for a bundle of MANY_LABELS labels: more bytes than a script is given."""
    reply = answer(job)
    few = reply.arrays["logits"].to_numpy()
    logits = np.full(MANY_LABELS, few.min() - 1, np.float32)
    logits[:CLASSES] = few
    return msgspec.structs.replace(reply, arrays=reply.arrays | {"logits": Array.from_numpy(logits)})


class HeldBatches:
    """A worker in the middle of a batch."""

    def __init__(self) -> None:
        self._started = threading.Event()
        self._may_end = threading.Event()

    def wait_for_batch(self) -> None:
        assert self._started.wait(WAIT_S), "no batch began"

    def release(self) -> None:
        self._may_end.set()

    def hold(self) -> None:
        self._started.set()
        assert self._may_end.wait(WAIT_S), "the batch was never released"


BEAT_S = 0.5


class Worker:
    """Pulls from the real queue in a thread; another one says that it lives, whatever happens to a batch."""

    def __init__(self, url: str, specs: list[BundleSpec], answer: Callable[[QueuedJob], Reply] = answer, cell: int = 0) -> None:
        self.queue = WorkerQueue(url, f"test-{id(self):x}", keyspace=keys.Keyspace(cell=cell))
        self.url = url
        self.stores_replies = False
        """The flag makes it write the arrays of its replies next to them, as workers do with large ones."""
        self.items_per_second = 100.0
        """Throughput that it announces when it starts."""
        self.specs = specs
        self.state = "ready"
        self._working = threading.Event()
        self._working.set()
        self._busy = threading.Lock()
        self.done: list[QueuedJob] = []
        self.running: list[Delivery] = []
        self._batches: HeldBatches | None = None
        self._answer = answer
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run), threading.Thread(target=self._beat)]

    def __enter__(self) -> Worker:
        self._served = [
            ServedBundle(
                name=spec.name,
                version=spec.version,
                task=spec.task,
                digest=self.queue.publish_spec(spec),
                state="ready",
                items_per_second=self.items_per_second,
                batch_budget=8,
                format="bfloat16",
                max_difference=0.02,
            )
            for spec in self.specs
        ]
        self._announce()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.queue.close()

    def stop(self) -> None:
        """Sign off."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        with suppress(RedisUnavailable):  # its key expires
            self.queue.withdraw()

    def redis(self) -> redis.Redis:
        """Connect to the Redis that it works on."""
        return CellRedis.from_url(self.url, decode_responses=True, encoding_errors="replace")

    def all_cancelled(self) -> bool:
        """Return whether all unfinished jobs have been cancelled."""
        with self.redis() as db:
            unfinished, cancelled = ({key.partition(":")[2] for key in db.scan_iter(f"{kind}:*")} for kind in ("job", "cancel"))
            return unfinished == cancelled

    def pause(self) -> None:
        """Take no further jobs, but stay alive."""
        self._working.clear()
        with self._busy:
            pass

    def resume(self) -> None:
        self._working.set()

    def finish_all(self) -> None:
        """Wait until all earlier jobs have ended."""
        self.resume()
        with self.redis() as db:
            eventually(lambda: not any(db.xlen(stream) for stream in db.smembers("queues")), "the queue is empty")

    @contextmanager
    def holding(self) -> Iterator[HeldBatches]:
        """Keep every batch from now on until `release`."""
        self._batches = HeldBatches()
        try:
            yield self._batches
        finally:
            self._batches.release()
            self._batches = None

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._turn()
            except RedisUnavailable:
                time.sleep(0.05)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with suppress(RedisUnavailable):
                self._announce()

    def _turn(self) -> None:
        if self._working.wait(0.02):
            with self._busy:
                if self._working.is_set():
                    self._work(self.queue.pull([keys.queue(spec.id, spec.digest()) for spec in self.specs], 16, block_ms=50))

    def _work(self, deliveries: list[Delivery]) -> None:
        expected = self.queue.start(deliveries, 0)
        self.done += [delivery.job for delivery in expected]
        self.running = expected
        if expected and self._batches is not None:
            self._batches.hold()
        if expected:
            self.queue.acks.finish([(delivery, self._reply(delivery.job)) for delivery in expected])

    def _reply(self, job: QueuedJob) -> Reply:
        reply = self._answer(job)
        if not self.stores_replies:
            return reply
        key = f"out:{job.id}:1"
        with self.redis() as db:
            db.set(key, msgspec.msgpack.encode(reply.arrays), ex=60)
        return msgspec.structs.replace(reply, arrays={}, stored=key)

    def _announce(self) -> None:
        self.queue.announce(
            WorkerInfo(
                folder="/srv/bundles",
                id=self.queue.id,
                host="here",
                pid=os.getpid(),
                state=self.state,
                device="cpu",
                bundles=self._served,
                slots=1,
            )
        )
