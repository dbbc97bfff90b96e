"""`python -m tests.support.consumer_program URL ID [--hold] [--pace S]`: a worker process that tests kill, freeze and restart.

It uses the real worker side of the queue and answers each job with its own `x`. It prints `ready`, then `batch N` or `alone` before each
batch. With `--hold` it waits for a line on its standard input before it answers a batch. An array `poison` kills it as a segfault would.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time

from server.queue.connect import RedisUnavailable
from server.queue.messages import Reply, WorkerInfo, WorkerTiming
from server.queue.worker.delivery import Delivery
from tests.support.queue import QUEUE, QUICK_WORKER, WorkerQueue, worker_queue


def beat(queue: WorkerQueue) -> None:
    info = WorkerInfo(id=queue.id, host="test", pid=os.getpid(), state="ready", device="cpu", bundles=[])
    while True:
        with contextlib.suppress(RedisUnavailable):
            queue.announce(info)
        time.sleep(QUICK_WORKER.key_ttl / 4)


def take(queue: WorkerQueue, batch: int) -> list[Delivery]:
    orphan = queue.intake.reclaim([QUEUE])
    return [orphan] if orphan else queue.pull([QUEUE], batch, 100)


def run(queue: WorkerQueue, deliveries: list[Delivery], hold: bool, pace: float) -> None:
    print("alone" if deliveries[0].alone else f"batch {len(deliveries)}", flush=True)
    if any("poison" in delivery.job.arrays for delivery in deliveries):
        os.kill(os.getpid(), signal.SIGKILL)
    if hold:
        sys.stdin.readline()
    time.sleep(pace)
    timing = WorkerTiming(batch_wait_ms=0.0, inference_ms=pace * 1000, worker_ms=pace * 1000, batch_size=len(deliveries))
    queue.acks.finish(
        [
            (delivery, Reply(id=delivery.job.id, worker=queue.id, arrays={"x": delivery.job.arrays["x"]}, timing=timing))
            for delivery in deliveries
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("id")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--hold", action="store_true")
    parser.add_argument("--pace", type=float, default=0.0)
    options = parser.parse_args()
    queue = worker_queue(options.url, options.id, QUICK_WORKER)
    threading.Thread(target=beat, args=(queue,), daemon=True).start()
    print("ready", flush=True)
    while True:
        try:
            deliveries = take(queue, options.batch)
        except RedisUnavailable:
            time.sleep(0.05)
            continue
        with contextlib.suppress(RedisUnavailable):
            deliveries = queue.start(deliveries, 0)
        if deliveries:
            run(queue, deliveries, options.hold, options.pace)


if __name__ == "__main__":
    main()
