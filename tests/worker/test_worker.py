"""A worker process against a real queue."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest
import redis

from models.loading import load
from server.queue import keys
from server.queue.messages import Reply, ServedBundle, WorkerInfo
from server.queue.worker.ack import FINISH
from server.queue.worker.connection import WorkerTimings
from server.queue.worker.delivery import Delivery
from server.supervisor.private_valkey import PrivateValkey
from server.worker.main import WATCH_INTERVAL_S
from tests.support.bundles.vit import write_null, write_tiny_vit, write_unserved
from tests.support.live_service import gateway, worker_process
from tests.support.poison_worker import COMMAND, SLOW
from tests.support.queue import Server, WorkerQueue, free_port
from tests.support.redis import CellRedis
from tests.support.waiting import WAIT_S, eventually_async


def slow_pixels(seconds: float) -> np.ndarray:
    """Return pixels with which `fragile` is busy for so long; its warm-up is not."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[0, :2] = SLOW, (round(10 * seconds), 0, 0)
    return pixels


def write_fragile(root: Path) -> None:
    write_null(root, name="fragile", architecture="fragile")


def random_pixels(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


async def test_everyone_gets_their_own_answer(valkey: PrivateValkey, tmp_path: Path) -> None:
    bundle = write_tiny_vit(tmp_path)
    pixels = np.stack([random_pixels(seed) for seed in range(200)])
    expected = load(bundle).forward({"pixels": pixels}, {"merge": [0, 0]})["logits"]
    with worker_process(valkey.url, tmp_path) as process, CellRedis.from_url(valkey.url) as db:
        async with gateway(valkey.url) as asking:
            await asking.ready()
            os.kill(process.pid, signal.SIGSTOP)  # else it answers as fast as they come
            requests = [asyncio.create_task(asking.ask(asking.job("tiny@1", picture))) for picture in pixels]
            await eventually_async(lambda: len(list(db.scan_iter("job:*", count=1000))) == len(requests), "all of them wait")
            os.kill(process.pid, signal.SIGCONT)
            replies = await asyncio.gather(*requests)
    np.testing.assert_allclose([reply.arrays["logits"].to_numpy() for reply in replies], expected, rtol=1e-4, atol=1e-4)
    assert max(reply.timing.batch_size for reply in replies if reply.timing) > 1


async def test_damaged_bundle_is_refused_and_others_are_served(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_null(tmp_path)
    damaged = write_tiny_vit(tmp_path)
    weights = bytearray(damaged.weights_path.read_bytes())
    weights[-1] ^= 1
    damaged.weights_path.write_bytes(weights)
    with worker_process(valkey.url, tmp_path):
        async with gateway(valkey.url) as asking:
            [info] = await asking.ready()
            states = {bundle.name: bundle for bundle in info.bundles}
            assert states["tiny"].state == "unavailable"
            assert states["tiny"].reason.startswith(str(damaged.weights_path.relative_to(tmp_path)))
            assert (await asking.ask(asking.job("null@1"))).failure is None


async def test_bundle_of_unserved_task_is_announced_with_reason(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_null(tmp_path)
    sketcher = write_unserved(tmp_path)
    with worker_process(valkey.url, tmp_path):
        async with gateway(valkey.url) as asking:
            [info] = await asking.ready()
            states = {bundle.name: bundle for bundle in info.bundles}
            assert (states["sketcher"].task, states["sketcher"].state) == ("depth", "unavailable")
            assert states["sketcher"].reason == "task depth is not served yet by this version"
            assert (await asking.dispatcher.fleet.read()).specs["sketcher", "1"].to_bytes() == sketcher.spec.to_bytes()
            assert (await asking.ask(asking.job("null@1"))).failure is None


async def test_a_repaired_bundle_is_loaded_without_a_restart(valkey: PrivateValkey, tmp_path: Path) -> None:
    bundle = write_tiny_vit(tmp_path)
    good = bundle.weights_path.read_bytes()
    bundle.weights_path.write_bytes(good[:-100])
    with worker_process(valkey.url, tmp_path):
        async with gateway(valkey.url) as asking:
            [info] = await asking.ready()
            assert info.bundles[0].state == "unavailable"
            bundle.weights_path.write_bytes(good)
            assert (await asking.ask(asking.job("tiny@1"))).failure is None


async def test_jobs_wait_for_evicted_weights_until_file_returns(valkey: PrivateValkey, tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    one, _two = (write_tiny_vit(bundles, name) for name in ("one", "two"))
    with worker_process(valkey.url, bundles, model_bytes=1, cache=tmp_path / "cache"):
        async with gateway(valkey.url) as asking:
            await asking.ready()
            for name in ("one", "two"):
                assert (await asking.ask(asking.job(f"{name}@1"))).failure is None
            one.path.rename(tmp_path / "moved")
            waiting: asyncio.Task[Reply] | None = None

            async def read_bundle() -> ServedBundle:
                [worker] = await asking.ready()
                return next(bundle for bundle in worker.bundles if bundle.name == "one")

            async def is_unavailable() -> bool:
                nonlocal waiting
                if waiting is None or waiting.done():  # its weights were in memory
                    await asking.ask(asking.job("two@1"))
                    waiting = asyncio.create_task(asking.ask(asking.job("one@1")))
                return (await read_bundle()).state == "unavailable"

            await eventually_async(is_unavailable, "its file is missed")
            assert (await read_bundle()).reason.startswith(str(one.weights_path.relative_to(bundles)))
            assert waiting is not None and not waiting.done()
            assert (await asking.ask(asking.job("two@1"))).failure is None
            (tmp_path / "moved").rename(one.path)
            assert (await waiting).failure is None


async def test_operators_unload_and_load_a_bundle(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_null(tmp_path)
    with worker_process(valkey.url, tmp_path):
        async with gateway(valkey.url) as asking:
            await asking.ready()

            async def is_now(state: str) -> bool:
                return (await asking.ready())[0].bundles[0].state == state

            for order, expected in (("unloaded", "unavailable"), ("loaded", "ready")):
                await asking.dispatcher.fleet.set_repository("null", order)
                await eventually_async(lambda expected=expected: is_now(expected), f"it is {expected}")
            assert (await asking.ask(asking.job("null@1"))).failure is None


async def test_a_worker_survives_whatever_lies_in_the_repository(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_null(tmp_path)
    with CellRedis.from_url(valkey.url) as intruder:
        for name, state in ((b"#revision", b"loaded"), (b"\xff\xfe", b"\xff"), (b"", b""), (b"null", b"broken"), (b"nothing", b"unloaded")):
            intruder.hset(keys.REPOSITORY, name, state)
        intruder.set(keys.REVISION, "many")
        with worker_process(valkey.url, tmp_path) as process:
            async with gateway(valkey.url) as asking:
                await asking.ready()
                assert (await asking.ask(asking.job("null@1"))).failure is None
                intruder.hset(keys.REPOSITORY, b"\x80", b"\x00\xff")
                await asyncio.sleep(2 * WATCH_INTERVAL_S)
                assert (await asking.ask(asking.job("null@1"))).failure is None
            assert process.poll() is None


async def test_a_worker_survives_a_redis_that_refuses_to_write(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_null(tmp_path)
    with worker_process(valkey.url, tmp_path) as process, CellRedis.from_url(valkey.url) as operator:
        async with gateway(valkey.url) as asking:
            await asking.ready()
            operator.config_set("min-replicas-to-write", 1)
            reply_task = asyncio.create_task(asking.ask(asking.job("null@1")))
            await asyncio.sleep(2 * WATCH_INTERVAL_S)
            assert process.poll() is None
            operator.config_set("min-replicas-to-write", 0)
            assert (await reply_task).failure is None


async def test_culprit_of_failing_batch_is_found_and_others_answered(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_tiny_vit(tmp_path)
    with worker_process(valkey.url, tmp_path):
        async with gateway(valkey.url) as asking:
            await asking.ready()
            jobs = [asking.job("tiny@1", random_pixels(seed, side=40 if seed == 3 else 32)) for seed in range(8)]
            replies = await asking.dispatcher.submitter.submit(jobs)
    kinds = [reply.failure.kind if reply.failure else None for reply in replies]
    assert kinds == [None] * 3 + ["model-error"] + [None] * 4
    with CellRedis.from_url(valkey.url) as client:
        [(_, letter)] = client.xrange(keys.DEAD)
        assert letter[b"id"] == jobs[3].id.encode()


async def test_a_job_cancelled_while_another_runs_does_not_run(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_fragile(tmp_path)
    with worker_process(valkey.url, tmp_path, command=COMMAND), CellRedis.from_url(valkey.url) as client:
        async with gateway(valkey.url) as asking:
            await asking.ready()
            running = asyncio.create_task(asking.ask(asking.job("fragile@1", slow_pixels(1.5), bucket="first")))
            await until_a_worker_holds_a_job(valkey)
            unwanted = asking.job("fragile@1", bucket="second")
            waiting = asyncio.create_task(asking.ask(unwanted))
            await eventually_async(lambda: client.exists(keys.job(unwanted.id)), "it is queued")
            after = asyncio.create_task(asking.ask(asking.job("fragile@1", bucket="third")))
            waiting.cancel()
            left = keys.cancel(unwanted.id), keys.job(unwanted.id)
            await eventually_async(lambda: client.exists(left[0]) or not client.exists(left[1]), "the worker is told, or the job is gone")
            assert (await running).failure is None
            assert (await after).failure is None
            statistics = await asking.dispatcher.status.statistics("fragile@1")
    assert statistics["inference_count"] == 2


async def test_two_contents_of_one_name_have_workers_of_their_own(valkey: PrivateValkey, tmp_path: Path) -> None:
    fast, slow = write_null(tmp_path / "fast", milliseconds=1), write_null(tmp_path / "slow", milliseconds=2)
    digests = [bundle.spec.digest() for bundle in (fast, slow)]
    assert fast.spec.id == slow.spec.id
    with worker_process(valkey.url, tmp_path / "fast"), worker_process(valkey.url, tmp_path / "slow"):
        async with gateway(valkey.url) as asking:
            infos = await asking.ready(2)
            serving = {info.bundles[0].digest: info.id for info in infos}
            jobs = [asking.job("null@1", digest=digests[number % 2]) for number in range(40)]
            replies = await asyncio.gather(*map(asking.ask, jobs))
    assert [reply.worker for reply in replies] == [serving[digest] for digest in digests] * 20


async def test_job_for_newer_version_is_left_to_it(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_null(tmp_path)
    newer = WorkerQueue(valkey.url, "newer", WorkerTimings(key_ttl=600.0), "telepathy")
    newer.announce(WorkerInfo(id=newer.id, host="here", pid=0, state="starting", device="cpu", bundles=[]))
    with worker_process(valkey.url, tmp_path) as process:
        async with gateway(valkey.url) as asking:
            await asking.ready()
            job = asking.job("null@1", needs="telepathy")
            reply_task = asyncio.create_task(asking.ask(job))
            await until_a_worker_holds_a_job(valkey)
            taken: list[Delivery] = []
            async with asyncio.timeout(WAIT_S):
                while not taken:  # the other one waits at the queue, too
                    taken = await asyncio.to_thread(newer.pull, [keys.queue(job.bundle, job.digest)], 1, 2000)
            newer.acks.finish([(delivery, Reply(id=delivery.job.id, worker=newer.id)) for delivery in taken])
            assert (await reply_task).worker == newer.id
            assert (await asking.ask(asking.job("null@1"))).failure is None
        assert process.poll() is None
    newer.close()


async def test_sigterm_finishes_what_was_begun_and_ends_with_0(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_fragile(tmp_path)
    with worker_process(valkey.url, tmp_path, command=COMMAND) as process:
        async with gateway(valkey.url) as asking:
            await asking.ready()
            reply_task = asyncio.create_task(asking.ask(asking.job("fragile@1", slow_pixels(0.7))))
            await until_a_worker_holds_a_job(valkey)
            process.send_signal(signal.SIGTERM)
            assert (await reply_task).failure is None
            assert process.wait(WAIT_S) == 0
            assert (await asking.dispatcher.fleet.read(fresh=True)).workers == ()


async def test_leaving_worker_takes_jobs_for_the_drain_delay(valkey: PrivateValkey, tmp_path: Path) -> None:
    """Prove that jobs of a content that no other worker has are run, and that its readiness follows its life."""
    write_null(tmp_path)
    health = f"http://127.0.0.1:{(port := free_port())}/health/ready"
    with worker_process(valkey.url, tmp_path, metrics_port=port, drain_delay=3) as process:
        async with gateway(valkey.url) as asking:
            await asking.ready()
            await eventually_async(lambda: httpx2.get(health).status_code == 200, "all bundles are loaded")
            process.send_signal(signal.SIGTERM)
            await eventually_async(lambda: httpx2.get(health).json() == {"ready": False, "detail": "draining"}, "it drains")
            assert (await asking.ask(asking.job("null@1"))).failure is None
            assert process.wait(WAIT_S) == 0


async def test_second_signal_hands_back_at_once_to_another_worker(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_fragile(tmp_path)
    with worker_process(valkey.url, tmp_path, command=COMMAND) as first:
        async with gateway(valkey.url) as asking:
            await asking.ready()
            reply_task = asyncio.create_task(asking.ask(asking.job("fragile@1", slow_pixels(3))))
            await until_a_worker_holds_a_job(valkey)
            first.send_signal(signal.SIGTERM)
            first.send_signal(signal.SIGINT)
            await eventually_async(lambda: first.poll() is not None, "the first worker has ended")
            assert first.returncode == 0
            assert not reply_task.done()
            with worker_process(valkey.url, tmp_path, command=COMMAND):
                assert (await reply_task).failure is None


@pytest.mark.parametrize("device", ["cuda", "abacus"])
async def test_a_device_that_is_not_there_is_misuse(valkey: PrivateValkey, tmp_path: Path, device: str) -> None:
    import torch

    if device == "cuda" and torch.cuda.is_available():
        device = "cuda:63"
    with worker_process(valkey.url, tmp_path, device=device) as process:
        assert process.wait(WAIT_S) == 2


async def until_a_worker_holds_a_job(valkey: PrivateValkey) -> None:
    with CellRedis.from_url(valkey.url) as client:

        def is_pending() -> bool:
            return any(group["pending"] for stream in client.smembers("queues") for group in client.xinfo_groups(stream))

        await eventually_async(is_pending, "a worker holds the job")


async def test_a_worker_outlives_foreign_contents_of_the_queue(valkey: PrivateValkey, tmp_path: Path) -> None:
    """The worker ends its job once they are repaired, and takes the next one."""
    write_null(tmp_path)
    finish = FINISH.sha  # the first call sends the source, a repeated one the name
    with worker_process(valkey.url, tmp_path) as process, CellRedis.from_url(valkey.url) as db:
        async with gateway(valkey.url) as asking:
            await asking.ready()
            os.kill(process.pid, signal.SIGSTOP)
            reply_task = asyncio.create_task(asking.ask(asking.job("null@1")))
            await eventually_async(lambda: db.exists("queue:bytes"), "the job waits")
            nbytes = db.get("queue:bytes")
            with redis.Redis.from_url(valkey.url) as watching, watching.monitor() as watch:
                db.set("queue:bytes", "abc")
                os.kill(process.pid, signal.SIGCONT)
                await asyncio.to_thread(
                    lambda: any(finish in command["command"] or process.poll() is not None for command in watch.listen())
                )
            assert process.poll() is None and not reply_task.done()
            db.set("queue:bytes", nbytes)
            assert (await reply_task).failure is None
            assert (await asking.ask(asking.job("null@1"))).failure is None
        assert process.poll() is None


def test_a_worker_that_starts_before_its_redis_says_so(tmp_path: Path) -> None:
    write_null(tmp_path / "bundles")
    port = free_port()
    environment = os.environ | {
        "OPSIN_REDIS_URL": f"redis://127.0.0.1:{port}/0",
        "OPSIN_METRICS_PORT": "0",
        "OPSIN_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "opsin", "worker", "--bundles", str(tmp_path / "bundles")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        server = None
        try:
            assert process.stderr is not None
            events = (json.loads(line) for line in process.stderr)
            assert "Error 111" in next(line for line in events if line["event"] == "queue unavailable")["reason"]
            server = Server(tmp_path / "redis", "--save", "", port=port)
            assert next(line for line in events if line["event"] in ("queue back", "bundle ready"))["event"] == "queue back"
            assert any(line["event"] == "bundle ready" for line in events)
        finally:
            process.kill()
            if server is not None:
                server.kill()
