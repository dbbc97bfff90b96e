"""Line 6 of the contract: Redis restarts, fails over or loses everything under load, and every request is answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis

from server.queue.connect import RedisUnavailable, connect
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.worker.connection import WorkerRedisLink
from server.queue.worker.delivery import Delivery
from server.supervisor.private_valkey import PrivateValkey
from tests.support.queue import (
    LASTING_WORKER,
    QUEUE,
    QUICK_WORKER,
    STREAM,
    Consumer,
    Server,
    a_job,
    announce,
    answer_of,
    ask,
    durable_server,
    echo,
    free_port,
    gateway,
    ping,
    place,
    pull_one,
    redis_at,
    running,
    until_deadline,
    worker_queue,
)
from tests.support.waiting import eventually_async

MANY = 120


@dataclass(frozen=True)
class Load:
    us: Dispatcher
    requests: list[asyncio.Task[int]]
    consumers: tuple[Consumer, ...]

    def go_on(self) -> None:
        """Let workers finish what runs, and run what waits."""
        for consumer in self.consumers:
            consumer.release_for_good()


@contextlib.asynccontextmanager
async def run_under_load(url: str, **settings: Any) -> AsyncIterator[Load]:
    """Start two workers and requests. Yields when some are answered, some run until `go_on`, and some wait."""
    holding = ("--batch", "4", "--pace", "0.05", "--hold")
    async with gateway(url, **settings) as us, Consumer(url, *holding) as one, Consumer(url, *holding) as other:
        requests = [asyncio.create_task(ask(us, value)) for value in range(MANY)]
        answered = 0
        while answered < MANY // 4:
            for consumer in (one, other):
                assert await consumer.next_batch()
                consumer.release()
            await eventually_async(lambda before=answered: sum(request.done() for request in requests) > before)  # type: ignore[misc]
            answered = sum(request.done() for request in requests)
        for consumer in (one, other):
            assert await consumer.next_batch()
        assert not all(request.done() for request in requests)
        yield Load(us, requests, (one, other))


@pytest.mark.queue_line(6)
async def test_redis_restarts_with_its_data_under_load(tmp_path: Path) -> None:
    with durable_server(tmp_path) as server:
        async with run_under_load(server.url) as load:
            server.kill()
            later_requests = [asyncio.create_task(ask(load.us, value)) for value in range(MANY, MANY + 20)]
            load.go_on()
            server.start()
            assert await asyncio.gather(*load.requests, *later_requests) == list(range(MANY + 20))


@pytest.mark.queue_line(6)
async def test_redis_restarts_empty_under_load() -> None:
    server = PrivateValkey()
    server.start()
    try:
        async with run_under_load(server.url) as load:
            server.process.kill()
            server.process.wait()
            later_requests = [asyncio.create_task(ask(load.us, value)) for value in range(MANY, MANY + 20)]
            load.go_on()
            server.start()
            assert await asyncio.gather(*load.requests, *later_requests) == list(range(MANY + 20))
    finally:
        server.stop()


@pytest.mark.queue_line(6)
async def test_everything_is_deleted_under_load(url: str) -> None:
    async with run_under_load(url) as load:
        with redis_at(url) as operator:
            operator.flushall()
        load.go_on()
        assert await asyncio.gather(*load.requests) == list(range(MANY))
        assert await ask(load.us, 1) == 1


async def test_stalled_gateway_does_not_count_redis_as_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.queue.gateway.connection.COMMAND_TIMEOUT_S", 0.2)
    with durable_server(tmp_path) as server:
        async with gateway(server.url) as us:
            assert await ping(us)
            server.process.send_signal(signal.SIGSTOP)
            pong = asyncio.create_task(ping(us))
            for _ in range(10):  # until it has sent its command
                await asyncio.sleep(0)
            server.process.send_signal(signal.SIGCONT)
            time.sleep(0.4)  # in which the answer comes and is not read
            assert await pong


@pytest.mark.queue_line(6)
async def test_lost_connection_loses_no_delivery(url: str) -> None:
    """Disconnect all clients again and again: jobs in answers that never arrived are found."""
    async with run_under_load(url) as load:
        with redis_at(url) as operator:
            operator.client_kill_filter(_type="normal")
            load.go_on()
            while not all(request.done() for request in load.requests):
                operator.client_kill_filter(_type="normal")
                await asyncio.sleep(0.1)
        assert await asyncio.gather(*load.requests) == list(range(MANY))


@pytest.mark.queue_line(6)
async def test_job_lost_on_delivery_is_found(url: str) -> None:
    lose_answers = asyncio.Event()
    async with gateway(url) as us, proxy_to(place(url), lose=lose_answers) as port:
        worker = worker_queue(f"redis://127.0.0.1:{port}/0", "w", QUICK_WORKER)
        assert await asyncio.to_thread(worker.pull, [QUEUE], 4) == []
        request = asyncio.create_task(ask(us, 1))
        await eventually_async(lambda: redis_at(url).xlen(STREAM) == 1)
        lose_answers.set()
        with pytest.raises(RedisUnavailable):
            await asyncio.to_thread(worker.pull, [QUEUE], 4)
        lose_answers.clear()
        assert redis_at(url).xpending(STREAM, "workers")["pending"] == 1
        [delivery] = await asyncio.to_thread(worker.pull, [QUEUE], 4)
        await asyncio.to_thread(worker.acks.finish, [(delivery, echo(worker, delivery))])
        assert await request == 1


@pytest.mark.queue_line(6)
async def test_lost_job_is_searched_again_if_search_fails(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking = ["pull", "EXISTS"]

    def after(call: Callable[..., Any]) -> Callable[..., Any]:
        def broken(link: WorkerRedisLink, command: Any, *arguments: Any, **options: Any) -> Any:
            answer = call(link, command, *arguments, **options)
            if (name := getattr(command, "name", command)) in breaking:
                breaking.remove(name)
                raise RedisUnavailable
            return answer

        return broken

    worker = worker_queue(url, "worker", LASTING_WORKER)
    async with gateway(url) as us:
        request = asyncio.create_task(ask(us, 1))
        with redis_at(url) as db:
            await eventually_async(lambda: db.xlen(STREAM))
        monkeypatch.setattr(WorkerRedisLink, "run", after(WorkerRedisLink.run))
        monkeypatch.setattr(WorkerRedisLink, "command", after(WorkerRedisLink.command))
        for _ in range(2):
            with pytest.raises(RedisUnavailable):
                await asyncio.to_thread(worker.pull, [QUEUE], 4)
        assert breaking == []
        [delivery] = await asyncio.to_thread(worker.pull, [QUEUE], 4)
        await asyncio.to_thread(worker.acks.finish, [(delivery, echo(worker, delivery))])
        assert await request == 1


@pytest.mark.queue_line(6)
async def test_worker_is_not_presumed_dead_right_after_redis_returns(tmp_path: Path) -> None:
    with durable_server(tmp_path) as server:
        busy, other = (worker_queue(server.url, name, LASTING_WORKER) for name in ("busy", "other"))
        async with gateway(server.url) as us:
            request = asyncio.create_task(ask(us, 1))
            announce(busy)
            [taken] = await running(busy)
            server.kill()
            with pytest.raises(RedisUnavailable):
                other.intake.reclaim([QUEUE])
            server.start()
            await eventually_async(lambda: ping(us))
            redis_at(server.url).delete(f"worker:{busy.id}")  # it expired
            assert other.intake.reclaim([QUEUE]) is None
            busy.acks.finish([(taken, echo(busy, taken))])
            assert await request == 1


@pytest.mark.queue_line(3)
async def test_unfinished_result_is_given_back_and_runs_again(tmp_path: Path) -> None:
    with durable_server(tmp_path) as server:
        worker = worker_queue(server.url, "worker", replace(QUICK_WORKER, retry_timeout=0.2))
        async with gateway(server.url) as us:
            request = asyncio.create_task(us.submitter.submit([await a_job(us, value) for value in range(3)]))
            taken = await pull_one(worker)
            server.kill()
            with pytest.raises(RedisUnavailable):
                await asyncio.to_thread(worker.acks.finish, [(delivery, echo(worker, delivery)) for delivery in taken])
            server.start()
            again: list[Delivery] = []

            async def all_are_here_again() -> bool:
                with contextlib.suppress(RedisUnavailable):  # a thread whose connection died with the server learns it by its first command
                    again.extend(await pull_one(worker))
                return len(again) == len(taken)

            await eventually_async(all_are_here_again)
            assert {delivery.job.id for delivery in again} == {delivery.job.id for delivery in taken}
            assert not any(delivery.alone for delivery in again)
            worker.acks.finish([(delivery, echo(worker, delivery)) for delivery in again])
            assert [answer_of(reply) for reply in await request] == [0, 1, 2]


@pytest.mark.queue_line(3)
async def test_late_hand_back_follows_once_redis_is_there(tmp_path: Path) -> None:
    """Prove it for a worker that goes on, such as one that cannot reload the weights that its jobs need."""
    with durable_server(tmp_path) as server:
        worker = worker_queue(server.url, "worker", replace(QUICK_WORKER, retry_timeout=0.2))
        async with gateway(server.url) as us:
            request = asyncio.create_task(ask(us, 1))
            taken = await pull_one(worker)
            server.kill()
            with pytest.raises(RedisUnavailable):
                await asyncio.to_thread(worker.intake.return_to_queue, taken)
            server.start()
            again: list[Delivery] = []

            async def it_is_here_again() -> bool:
                with contextlib.suppress(RedisUnavailable):
                    again.extend(await pull_one(worker))
                return bool(again)

            await eventually_async(it_is_here_again, seconds=20)
            worker.acks.finish([(delivery, echo(worker, delivery)) for delivery in again])
            assert await request == 1


@pytest.mark.queue_line(6)
async def test_current_master_is_followed(tmp_path: Path) -> None:
    """The old master goes on as a replica and keeps its connections: it would answer reads, and refuse writes, for ever."""
    name = tmp_path / "redis.sock"
    servers = [Server(tmp_path / name, "--save", "", "--unixsocket", "socket") for name in ("first", "second")]
    name.symlink_to(servers[0].folder / "socket")
    try:
        async with gateway(f"unix://{name}", redis_grace=60) as us, Consumer(f"unix://{name}"):
            assert await ask(us, 1) == 1
            name.unlink()
            name.symlink_to(servers[1].folder / "socket")
            with redis_at(servers[0].url) as operator:
                operator.replicaof("127.0.0.1", str(servers[1].port))
            assert await asyncio.gather(*(ask(us, value) for value in range(8))) == list(range(8))
    finally:
        for server in servers:
            server.kill()


@pytest.mark.queue_line(6)
async def test_requests_wait_for_redis_exactly_its_grace(tmp_path: Path) -> None:
    with durable_server(tmp_path) as server:
        async with gateway(server.url, redis_grace=0.5) as us:
            waiting = asyncio.create_task(ask(us, 1))
            await eventually_async(lambda: redis_at(server.url).exists(STREAM))
            server.kill()
            for outcome in await asyncio.gather(waiting, ask(us, 2), return_exceptions=True):
                assert isinstance(outcome, RedisUnavailable)
                assert outcome.retry_after >= 1
            server.start()
            await eventually_async(lambda: ping(us))
            async with Consumer(server.url):
                assert await ask(us, 3) == 3


@pytest.mark.queue_line(6)
async def test_figures_are_refused_at_once_while_redis_is_down(tmp_path: Path) -> None:
    with durable_server(tmp_path) as server:
        async with gateway(server.url) as us:
            assert await ping(us)
            server.kill()
            assert not await ping(us)
            for question in (us.fleet.read, us.queues):
                with pytest.raises(RedisUnavailable):
                    await question()


@pytest.mark.queue_line(6)
async def test_gateway_starts_before_its_redis(tmp_path: Path) -> None:
    port = free_port()
    async with gateway(f"redis://127.0.0.1:{port}/0") as us:
        early = asyncio.create_task(ask(us, 5))
        server = Server(tmp_path, "--save", "", port=port)
        try:
            async with Consumer(server.url):
                assert await early == 5
        finally:
            server.kill()


@pytest.mark.queue_line(6)
async def test_log_reports_loss_and_return_of_redis_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server.queue.gateway.connection")
    port = free_port()
    async with gateway(f"redis://127.0.0.1:{port}/0") as us:
        await eventually_async(lambda: bool(caplog.records))
        assert "queue unavailable: the queue's Redis does not answer: Error 111" in caplog.text
        server = Server(tmp_path, "--save", "", port=port)
        try:
            await eventually_async(lambda: ping(us))
        finally:
            server.kill()
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        assert not await ping(us)
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]


@pytest.mark.queue_line(8)
async def test_deadline_holds_while_redis_is_down(tmp_path: Path) -> None:
    with durable_server(tmp_path) as server:
        async with gateway(server.url) as us:
            job = await a_job(us, 1, seconds=0.5)
            server.kill()
            with pytest.raises(TimeoutError):
                await until_deadline(us, [job])


@contextlib.contextmanager
def sentinel(folder: Path, master: Server) -> Iterator[Server]:
    port = free_port()
    folder.mkdir()
    config = folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor shard 127.0.0.1 {master.port} 1\n"
        "sentinel down-after-milliseconds shard 1000\nsentinel failover-timeout shard 2000\n"
    )
    server = Server(folder, str(config), "--sentinel", port=port)
    try:
        yield server
    finally:
        server.kill()


@pytest.mark.queue_line(6)
async def test_sentinel_fails_over_under_load(tmp_path: Path) -> None:
    master = Server(tmp_path / "master", "--save", "")
    replica = Server(tmp_path / "replica", "--save", "", "--replicaof", "127.0.0.1", str(master.port))
    try:
        with (
            sentinel(tmp_path / "sentinel", master) as watcher,
            redis.Redis(port=watcher.port, decode_responses=True) as sight,
            redis.Redis(port=replica.port) as copy,
        ):
            await eventually_async(lambda: copy.info("replication")["master_link_status"] == "up")
            await eventually_async(lambda: sight.sentinel_slaves("shard"))
            async with run_under_load(f"redis+sentinel://127.0.0.1:{watcher.port}/shard/0", redis_grace=60) as load:
                master.kill()
                load.go_on()
                assert await asyncio.gather(*load.requests) == list(range(MANY))
                assert sight.sentinel_get_master_addr_by_name("shard") == ("127.0.0.1", replica.port)
                assert await ask(load.us, 1) == 1
    finally:
        master.kill()
        replica.kill()


async def test_rediss_speaks_tls_and_checks_the_certificate(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    make_certificate += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make_certificate, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Server(tmp_path / "plain", "--save", "")
    try:
        async with proxy_to(server.port, tls=context) as port:
            trusted = f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}"
            async with gateway(trusted) as us, Consumer(trusted):
                assert await ask(us, 5) == 5
            with pytest.raises(redis.exceptions.ConnectionError, match="certificate verify failed"):
                await asyncio.to_thread(connect(f"rediss://localhost:{port}/0").ping)
    finally:
        server.kill()


@contextlib.asynccontextmanager
async def proxy_to(behind: int | Path, *, tls: ssl.SSLContext | None = None, lose: asyncio.Event | None = None) -> AsyncIterator[int]:
    """Run a proxy before a server's port or socket that ends TLS, or hangs up instead of passing answers back. Yields its port."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event | None = None) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if losing is not None and losing.is_set():
                    break
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(behind, int):
            behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", behind)
        else:
            behind_reader, behind_writer = await asyncio.open_unix_connection(behind)
        await asyncio.gather(pump(reader, behind_writer), pump(behind_reader, writer, lose))

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with proxy:
        yield proxy.sockets[0].getsockname()[1]
