"""Webhooks: which receivers are called at the end of a job, how calls are signed, and when they are repeated or given up."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
import redis
from msgspec.structs import replace
from standardwebhooks import Webhook, WebhookVerificationError

from server.gateway.jobs.service import read_webhook
from server.gateway.webhooks import AT_ONCE, SigningSecrets, WebhookSender, WebhookTimings
from server.http.outbound import OutboundClient
from server.http.requests import Head
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.gateway.record_store import MAX_PER_HOST
from server.queue.messages import QueuedJob
from server.supervisor.private_valkey import PrivateValkey
from server.telemetry.metrics import GatewayMetrics
from tests.gateway.conftest import Shared
from tests.support import queue as queues
from tests.support.fake_servers import Host, HostAnswer, RecordedRequest, host, trust
from tests.support.fake_worker import Worker, picture, unbearable
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.queue import DRAFT, a_job
from tests.support.redis import private_valkey
from tests.support.waiting import eventually, eventually_async

SECRETS = [f"whsec_{base64.b64encode(bytes([number]) * 32).decode()}" for number in (1, 2)]
TRIES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
QUICK = WebhookTimings(look=0.02, lease=60.0, timeout=10.0, tries=TRIES)
HERE = ["127.0.0.0/8", "::1/128"]
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SSL_CERT_FILE", str(trust(tmp_path_factory.mktemp("authority"))))
        yield


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secrets") / "webhooks"
    file.write_text("\n".join(SECRETS) + "\n")
    return file


@pytest.fixture(scope="module")
def valkey() -> Iterator[PrivateValkey]:
    """Emptied for each test that uses its `url`."""
    with private_valkey() as server:
        yield server


@pytest.fixture
def db(url: str) -> Iterator[redis.Redis]:
    with queues.redis_at(url, decode_responses=True) as client:
        yield client


class Receiver:
    """A host that gives these answers in turn, the last one again and again."""

    def __init__(self, *answers: HostAnswer | Callable[[], HostAnswer]) -> None:
        self._answers = list(answers) or [HostAnswer(204)]
        self._next = iter(range(10**9))

    def __call__(self, _request: RecordedRequest) -> HostAnswer:
        answer = self._answers[min(next(self._next), len(self._answers) - 1)]
        return answer() if callable(answer) else answer


def verify_call(request: RecordedRequest, secret: str = SECRETS[0]) -> dict[str, Any]:
    """Return the document of the job. Raises WebhookVerificationError if it is not signed."""
    document: dict[str, Any] = Webhook(secret).verify(request.body, request.headers)
    return document


@pytest.fixture(scope="module")
def receiver(certificates: None) -> Iterator[Host]:
    with host(Receiver()) as running:
        yield running


@pytest.fixture(scope="module")
def calling(shared: Shared, receiver: Host, secrets: Path) -> Iterator[Gateway]:
    """A gateway that calls back, as it is shipped."""
    allowed = {"webhook_hosts": [f"localhost:{receiver.port}"], "webhook_networks": HERE, "webhook_secret_file": str(secrets)}
    with gateway_process(shared.redis_url, **allowed) as running:
        yield running


def later(gateway: Gateway, url: str, content: bytes | None = None, **headers: str) -> httpx2.Response:
    return gateway.classify(content or picture(3), headers={"Prefer": "respond-async", "X-Webhook-URL": url, **headers})


def calls_about(receiver: Host, job: str) -> list[RecordedRequest]:
    return [request for request in list(receiver.requests) if job.encode() in request.body]


def test_the_end_of_a_job_is_sent_and_signed_by_every_secret(calling: Gateway, worker: Worker, receiver: Host) -> None:
    job = later(calling, receiver.url("/hook?who=me")).json()["id"]
    eventually(lambda: calls_about(receiver, job), "the receiver is called")
    assert worker.done[-1].needs == "webhooks"  # so no worker takes it that would call no receiver
    (request,) = calls_about(receiver, job)
    assert (request.method, request.path, request.headers["content-type"]) == ("POST", "/hook?who=me", "application/json")
    assert verify_call(request, SECRETS[0]) == verify_call(request, SECRETS[1]) == calling.http.get(f"/v1/jobs/{job}").json()
    assert verify_call(request)["state"] == "done"
    with pytest.raises(WebhookVerificationError):
        verify_call(request, f"whsec_{base64.b64encode(bytes(32)).decode()}")
    eventually(lambda: calling.metric("opsin_webhooks_total", outcome="delivered"), "it is counted")


def test_an_address_in_capitals_is_the_same_host(calling: Gateway, worker: Worker, receiver: Host) -> None:
    job = later(calling, receiver.url("/Hook", "LocalHost").replace("https", "HTTPS")).json()["id"]
    eventually(lambda: calls_about(receiver, job), "the receiver is called")
    (request,) = calls_about(receiver, job)
    assert (request.path, request.headers["host"]) == ("/Hook", f"localhost:{receiver.port}")


def test_host_is_normalised_whatever_port_and_case() -> None:
    def normalise(url: str) -> str:
        head = Head.parse("/", [(b"x-webhook-url", url.encode())])
        return read_webhook(head, [("hooks.example", 443)]).url

    assert {normalise(f"{host}/a?b") for host in ("https://hooks.example", "HTTPS://Hooks.example:443")} == {"https://hooks.example/a?b"}


def test_only_the_requested_events_are_sent(calling: Gateway, worker: Worker, receiver: Host) -> None:
    headers = {"X-Webhook-Events": "failed, cancelled"}
    done = later(calling, receiver.url("/"), **headers).json()["id"]
    failed = later(calling, receiver.url("/"), unbearable(), **headers).json()["id"]
    eventually(lambda: calls_about(receiver, failed), "the failure is delivered")
    (request,) = calls_about(receiver, failed)
    assert (verify_call(request)["state"], verify_call(request)["error"]["type"]) == ("failed", "urn:opsin:model-error")
    eventually(lambda: calling.http.get(f"/v1/jobs/{done}").json()["state"] == "done", "the other job is done")
    with worker.redis() as db:
        assert not db.exists(f"webhook:{done}")
    assert not calls_about(receiver, done)


def test_job_cancelled_and_removed_at_once_is_reported_as_ended(calling: Gateway, worker: Worker, receiver: Host) -> None:
    worker.pause()
    job = later(calling, receiver.url("/")).json()["id"]
    for _ in range(2):
        assert calling.http.delete(f"/v1/jobs/{job}").status_code == 204
    eventually(lambda: calls_about(receiver, job), "the receiver is called")
    assert verify_call(calls_about(receiver, job)[0])["state"] == "cancelled"
    assert calling.http.get(f"/v1/jobs/{job}").status_code == 404


@pytest.mark.parametrize(
    ("headers", "field", "words"),
    [
        ({"X-Webhook-URL": "https://elsewhere.example/"}, "X-Webhook-URL", "not listed"),
        ({"X-Webhook-URL": "http://localhost/"}, "X-Webhook-URL", "OPSIN_WEBHOOK_HOSTS"),
        ({"X-Webhook-URL": "hook"}, "X-Webhook-URL", "https"),
        ({"X-Webhook-URL": "{url}", "X-Webhook-Events": "done,started"}, "X-Webhook-Events", "'started': use done, failed, cancelled"),
        ({"X-Webhook-URL": "{url}", "X-Webhook-Events": ""}, "X-Webhook-Events", "use done"),
        ({"X-Webhook-Events": "done"}, "X-Webhook-Events", "given without X-Webhook-URL"),
        ({"X-Webhook-URL": "{url}", "Prefer": "wait"}, "X-Webhook-URL", "respond-async"),
        ({"X-Webhook-URL": "{url}", "Prefer": "wait", "Accept": "text/event-stream"}, "X-Webhook-URL", "respond-async"),
    ],
)
def test_what_is_wrong_with_the_headers_is_named(calling: Gateway, receiver: Host, headers: dict[str, str], field: str, words: str) -> None:
    sent = {"Prefer": "respond-async"} | {name: value.format(url=receiver.url("/")) for name, value in headers.items()}
    refused = calling.classify(picture(1), headers=sent)
    assert (refused.status_code, refused.json()["field"]) == (422, field)
    assert words in refused.json()["detail"]


def test_a_second_receiver_is_refused(calling: Gateway, receiver: Host) -> None:
    headers = [("Prefer", "respond-async"), *[("X-Webhook-URL", receiver.url(path)) for path in ("/a", "/b")]]
    refused = calling.http.post("/v1/classify", content=picture(1), headers=headers)
    assert (refused.status_code, refused.json()["field"]) == (422, "X-Webhook-URL")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/v2/models/reds/infer", 400), ("POST", "/v1/embeddings", 422), ("GET", "/v1/scenes/1", 422)]
)
def test_routes_that_answer_at_once_alone_refuse_the_headers(gateway: Gateway, method: str, path: str, status: int) -> None:
    refused = gateway.http.request(method, path, headers={"X-Webhook-URL": "https://localhost/"})
    assert refused.status_code == status
    assert "X-Webhook-URL" in refused.text
    assert "respond-async" in refused.text


def test_no_receiver_is_called_unless_hosts_are_listed(gateway: Gateway, receiver: Host) -> None:
    refused = later(gateway, receiver.url("/"))
    assert (refused.status_code, refused.json()["field"]) == (422, "X-Webhook-URL")
    assert "OPSIN_WEBHOOK_HOSTS" in refused.json()["detail"]


async def cancel_job(us: Dispatcher, url: str, key_name: str = "", traceparent: str = "") -> str:
    """Admit a job with a webhook and cancel it; return its id. key_name: owner of the job. traceparent: of its request."""

    def to_jobs(record: str) -> list[QueuedJob]:
        return [msgspec.structs.replace(job, id=f"{record}-0", record=record, gateway="")]

    job = await a_job(us)
    draft = replace(DRAFT, webhook=url, webhook_events="cancelled", key_name=key_name, traceparent=traceparent)
    record = await us.records.admit(draft, b"\x80", to_jobs)
    assert await us.records.cancel(record.id, key_name)
    return record.id


@asynccontextmanager
async def sending(
    us: Dispatcher, secrets: Path, *hosts: str, timings: WebhookTimings = QUICK, networks: list[str] = HERE
) -> AsyncIterator[GatewayMetrics]:
    metrics = GatewayMetrics()
    sender = WebhookSender(
        us.webhooks, OutboundClient(hosts, networks), SigningSecrets(secrets), metrics, lambda key: key != "revoked", timings
    )
    running = asyncio.create_task(sender.send_forever())
    try:
        yield metrics
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await sender.close()


def count(metrics: GatewayMetrics, outcome: str) -> int:
    (family,) = metrics.webhooks.collect()
    return next(int(one.value) for one in family.samples if one.labels == {"outcome": outcome} and one.name.endswith("_total"))


def redirect() -> HostAnswer:
    return HostAnswer(302, headers={"Location": "/"})


@pytest.mark.parametrize(
    ("answers", "calls", "outcome"),
    [
        ([HostAnswer(500), HostAnswer(200)], 2, "delivered"),
        ([HostAnswer(503), redirect, HostAnswer(299)], 3, "delivered"),
        ([HostAnswer(200, b"thanks", cut=2)], 1, "delivered"),
        ([HostAnswer(500, b"sorry", cut=2), HostAnswer(204)], 2, "delivered"),
        ([HostAnswer(410)], 1, "given_up"),
        ([HostAnswer(500), HostAnswer(410)], 2, "given_up"),
        ([HostAnswer(400)], len(TRIES), "given_up"),
    ],
)
async def test_receiver_is_called_until_it_accepts_or_declines(
    url: str, db: redis.Redis, certificates: None, secrets: Path, answers: list[Any], calls: int, outcome: str
) -> None:
    with host(Receiver(*answers)) as target:
        async with queues.gateway(url) as us, sending(us, secrets, f"localhost:{target.port}") as metrics:
            record = await cancel_job(us, target.url("/"), traceparent=TRACEPARENT)
            await eventually_async(lambda: count(metrics, outcome) == 1)
            await eventually_async(lambda: not db.exists(f"webhook:{record}") and not db.zcard("webhooks"))
            assert count(metrics, "failed") == calls - 1
        assert len(target.requests) == calls
        assert len({request.headers["webhook-id"] for request in target.requests}) == 1
        assert {verify_call(request)["id"] for request in target.requests} == {record}
        assert {request.headers["traceparent"] for request in target.requests} == {TRACEPARENT}


async def test_a_dead_receiver_is_given_up_and_the_job_is_as_it_was(url: str, db: redis.Redis, certificates: None, secrets: Path) -> None:
    dead = f"localhost:{queues.free_port()}"
    async with queues.gateway(url) as us, sending(us, secrets, dead) as metrics:
        record = await cancel_job(us, f"https://{dead}/")
        await eventually_async(lambda: count(metrics, "given_up") == 1)
        assert count(metrics, "failed") == len(TRIES) - 1
        found = await us.records.read(record)
        assert found is not None
        assert found.state == "cancelled"


async def test_a_host_has_half_of_the_places_and_the_others_the_rest(url: str) -> None:
    async with queues.gateway(url) as us:
        for host_name in ["hangs.example"] * 3 + ["listens.example"]:
            await cancel_job(us, f"https://{host_name}/hook")
        found, _ = await us.webhooks.claim(8, 60.0, {"hangs.example": MAX_PER_HOST - 2})
        assert [one.host for one in found] == ["hangs.example", "hangs.example", "listens.example"]


async def test_many_that_wait_for_one_host_do_not_hide_those_of_others(url: str, db: redis.Redis) -> None:
    hanging = [f"hanging-{number}" for number in range(1000)]
    db.zadd("webhooks", dict.fromkeys(hanging, 1.0))
    for id_ in hanging:
        db.hset(f"webhook:{id_}", "webhook", "https://hangs.example/hook")
    async with queues.gateway(url) as us:
        await cancel_job(us, "https://listens.example/hook")
        found = [await us.webhooks.claim(8, 60.0, {"hangs.example": MAX_PER_HOST}) for _ in range(2)]
        assert [one.host for claimed, _ in found for one in claimed] == ["listens.example"]
    assert db.zcard("webhooks") == len(hanging) + 1
    assert all(db.zscore("webhooks", id_) <= db.time()[0] * 1000 + 1000 for id_ in hanging[:8])  # they are as due as before


async def test_jobs_of_a_revoked_key_are_not_sent(url: str, db: redis.Redis, certificates: None, secrets: Path) -> None:
    with host(Receiver()) as target:
        async with queues.gateway(url) as us, sending(us, secrets, f"localhost:{target.port}") as metrics:
            record = await cancel_job(us, target.url("/"), "revoked")
            await eventually_async(lambda: count(metrics, "given_up") == 1)
            assert count(metrics, "failed") == len(TRIES) - 1  # its file of keys may have been an old one
            await eventually_async(lambda: not db.exists(f"webhook:{record}"))
            await cancel_job(us, target.url("/"), "alice")
            await eventually_async(lambda: count(metrics, "delivered") == 1)
        assert len(target.requests) == 1


async def test_unreadable_and_unsettled_calls_delay_no_others(url: str, db: redis.Redis, certificates: None, secrets: Path) -> None:
    with host(Receiver(HostAnswer(500), HostAnswer(204))) as target:
        async with queues.gateway(url) as us:
            unreadable, unsettled = [await cancel_job(us, target.url("/")) for _ in range(2)]
            db.hset(f"webhook:{unreadable}", "created_ms", "never")
            db.hdel(f"webhook:{unsettled}", "finished_ms")
            async with sending(us, secrets, f"localhost:{target.port}") as metrics:
                await eventually_async(lambda: (count(metrics, "failed"), count(metrics, "dropped")) == (1, 1))
                assert not db.exists(f"webhook:{unreadable}")
                good = await cancel_job(us, target.url("/"))
                await eventually_async(lambda: count(metrics, "delivered") == 1)
        assert [verify_call(request)["id"] for request in target.requests] == [unsettled, good]


async def test_retries_due_without_gateway_keep_their_spacing(url: str, db: redis.Redis) -> None:
    async with queues.gateway(url) as us:
        record = await cancel_job(us, "https://localhost/")
        finished = db.hincrby(f"webhook:{record}", "finished_ms", -3_600_000)
        ((due,), _) = await us.webhooks.claim(1, 60.0, {})
        before = db.time()[0] * 1000
        await us.webhooks.settle(due, 60.0, 50.0)
        assert db.zscore("webhooks", record) >= before + 50_000
        await us.webhooks.settle(due, 7200.0, 50.0)
        assert db.zscore("webhooks", record) == finished + 7_200_000


async def test_many_that_are_due_wait_for_a_free_place_alone(url: str, certificates: None, secrets: Path) -> None:
    with host(Receiver()) as target:
        async with queues.gateway(url) as us:
            for _ in range(AT_ONCE + 4):
                await cancel_job(us, target.url("/"))
            async with sending(us, secrets, f"localhost:{target.port}", timings=replace_timings(look=3600.0)) as metrics:
                await eventually_async(lambda: count(metrics, "delivered") == AT_ONCE + 4)


async def test_a_slow_receiver_delays_no_others(url: str, certificates: None, secrets: Path) -> None:
    asleep = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow() -> HostAnswer:
        asyncio.run_coroutine_threadsafe(asleep.wait(), loop).result(60)
        return HostAnswer(200)

    with host(Receiver(slow)) as tired, host(Receiver()) as awake:
        timings = replace_timings(timeout=60.0)
        async with (
            queues.gateway(url) as us,
            sending(us, secrets, f"localhost:{tired.port}", f"localhost:{awake.port}", timings=timings) as metrics,
        ):
            await cancel_job(us, tired.url("/"))
            await eventually_async(lambda: tired.requests)
            await cancel_job(us, awake.url("/"))
            await eventually_async(lambda: count(metrics, "delivered") == 1)
            assert (len(awake.requests), len(tired.requests)) == (1, 1)
            asleep.set()
            await eventually_async(lambda: count(metrics, "delivered") == 2)


async def test_one_that_takes_too_long_is_called_again(url: str, certificates: None, secrets: Path) -> None:
    asleep = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow() -> HostAnswer:
        asyncio.run_coroutine_threadsafe(asleep.wait(), loop).result(60)
        return HostAnswer(200)

    with host(Receiver(slow, HostAnswer(200))) as target:
        timings = replace_timings(timeout=1.0)
        async with queues.gateway(url) as us, sending(us, secrets, f"localhost:{target.port}", timings=timings) as metrics:
            await cancel_job(us, target.url("/"))
            await eventually_async(lambda: count(metrics, "delivered") == 1)
            assert count(metrics, "failed") == 1
            asleep.set()


async def test_delivery_of_dead_gateway_is_finished_after_its_lease(url: str, certificates: None, secrets: Path) -> None:
    with host(Receiver()) as target:
        async with queues.gateway(url) as us:
            await cancel_job(us, target.url("/"))
            claimed, _ = await us.webhooks.claim(8, 0.3, {})  # by a gateway that dies now
            assert [one.attempt for one in claimed] == [1]
            assert await us.webhooks.claim(8, 0.3, {}) == ([], 0)
            async with sending(us, secrets, f"localhost:{target.port}") as metrics:
                await eventually_async(lambda: count(metrics, "delivered") == 1)
            await us.webhooks.settle(claimed[0], 0.0)  # it was not dead after all, and is too late
            assert await us.webhooks.claim(8, 0.3, {}) == ([], 0)


async def test_a_name_that_leads_inside_is_never_called(url: str, certificates: None, secrets: Path) -> None:
    with host(Receiver()) as target:
        async with queues.gateway(url) as us, sending(us, secrets, f"localhost:{target.port}", networks=[]) as metrics:
            await cancel_job(us, target.url("/"))
            await eventually_async(lambda: count(metrics, "given_up") == 1)
        assert target.connections == 0


async def test_pending_notifications_are_bounded_and_drops_counted(url: str, db: redis.Redis, certificates: None, secrets: Path) -> None:
    async with queues.gateway(url) as us:
        db.zadd("webhooks", {f"other-{number}": 2e15 for number in range(10_000)})
        await cancel_job(us, "https://localhost/")
        async with sending(us, secrets, "localhost") as metrics:
            await eventually_async(lambda: count(metrics, "dropped") == 1)
        assert db.zcard("webhooks") == 10_000


def replace_timings(**seconds: float) -> WebhookTimings:
    return WebhookTimings(**{"look": QUICK.look, "lease": QUICK.lease, "tries": QUICK.tries} | seconds)  # type: ignore[arg-type]


def test_the_tries_are_those_of_the_contract() -> None:
    assert WebhookTimings().tries == (0, 10, 60, 300, 900, 2700)
    assert WebhookTimings().lease == 30
