"""API keys: who is let in, what belongs to whom, and how much each may ask for, at two gateways that share a file of keys."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from server.gateway.auth.key_file import ApiKey, format_line, hash_key, new_key
from tests.gateway.conftest import LIMITS, Shared
from tests.support.fake_worker import Worker, picture
from tests.support.gateway_process import Gateway, gateway_process, problem
from tests.support.job_api import accepted_id
from tests.support.raw_http import Raw
from tests.support.waiting import eventually

LATER = {"Prefer": "respond-async"}
SECRET = "opsin_" + "5ec2e7" * 10 + "abcd"
"""A key that the file does not have."""


@dataclass
class GuardedGateways:
    """Two gateways that require keys. Those of other tests require none and have the same queue."""

    gateways: tuple[Gateway, Gateway]
    file: Path
    keys: dict[str, str]

    def __post_init__(self) -> None:
        self.one, self.other = self.gateways

    def as_(self, name: str, gateway: Gateway | None = None) -> httpx2.Client:
        """Return a client with the key of this holder."""
        return httpx2.Client(base_url=(gateway or self.one).url, timeout=60, headers={"Authorization": f"Bearer {self.keys[name]}"})

    def admits(self, key: str) -> bool:
        return self._answers(key) == [200, 200]

    def refuses(self, key: str) -> bool:
        return self._answers(key) == [401, 401]

    def _answers(self, key: str) -> list[int]:
        """Return those of both gateways: each looks at the file by itself."""
        return [httpx2.get(f"{gateway.url}/v1/models", headers={"X-API-Key": key}).status_code for gateway in self.gateways]

    def add(self, line: str) -> None:
        with self.file.open("a") as file:
            file.write(f"{line}\n")


def holders() -> list[ApiKey]:
    return [
        ApiKey("alice"),
        ApiKey("bob"),
        ApiKey("few", max_items=3),
        ApiKey("slow", rate=0.05),
        ApiKey("modest", priority="normal"),
        ApiKey("last", priority="low"),
        ApiKey("watcher", metrics=True),
        ApiKey("root", admin=True),
    ]


@pytest.fixture(scope="module")
def guarded(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedGateways]:
    keys = {holder.name: new_key() for holder in holders()}
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text("# who may ask\n\n" + "".join(f"{format_line(one, hash_key(keys[one.name].encode()))}\n" for one in holders()))
    settings: dict[str, Any] = {**LIMITS, "api_keys_file": file, "model_control": "explicit", "cors_origins": ["https://page.example"]}
    with gateway_process(shared.redis_url, **settings) as one, gateway_process(shared.redis_url, **settings) as other:
        yield GuardedGateways((one, other), file, keys)


def classify_later(client: httpx2.Client, step: int = 3, **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/v1/classify", content=picture(step), headers={**LATER, **named})


OPEN = ["/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json", "/", "/status", "/static/api.js"]
CLOSED = [
    ("GET", "/v1/models"),
    ("GET", "/v1/status"),
    ("GET", "/metrics"),
    ("GET", "/v2"),
    ("GET", "/v2/models/reds/config"),
    ("GET", "/v1/jobs/5f0c2a9e-0b5c3a6e7f5d4b0fa1f5c86f4f0f7c11"),
    ("GET", "/v1/scenes/009d5e0c1b7a3f4e0f8a2b6c4d1e9f7a35"),
    ("GET", "/nothing"),
    ("GET", "//health/live"),
    ("GET", "/health"),
    ("GET", "/docs/../v1/models"),
    ("POST", "/v1/classify"),
    ("POST", "/v1/inpaint"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v2/models/reds/infer"),
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/reds/unload"),
    ("OPTIONS", "/v1/classify"),
]


@pytest.mark.parametrize("path", OPEN)
def test_health_and_pages_need_no_key(guarded: GuardedGateways, path: str) -> None:
    assert guarded.one.http.get(path).status_code == 200


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_everything_else_needs_a_key(guarded: GuardedGateways, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": f"Bearer {SECRET}"}, {"X-API-Key": SECRET}, {"Authorization": "Basic b3BzaW46b3BzaW4="}):
        refused = httpx2.Client(base_url=guarded.one.url).request(method, httpx2.URL(path), headers=headers)
        assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == 'Bearer realm="opsin"'
        assert SECRET not in refused.text
        assert ("type" in refused.json()) == (not path.startswith("/v2") and path != "/v1/embeddings")


def test_a_refusal_has_the_shape_of_its_protocol(guarded: GuardedGateways) -> None:
    problem(guarded.one.http.get("/v1/models"), 401, "unauthorized")
    assert "error" in guarded.one.http.get("/v2/models").json()
    assert guarded.one.http.post("/v1/embeddings", json={"input": "a"}).json()["error"]["code"] == "unauthorized"


def test_preflight_needs_no_key_and_page_can_read_refusal(guarded: GuardedGateways) -> None:
    page = {"Origin": "https://page.example"}
    preflight_headers = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = guarded.one.http.options("/v1/classify", headers=page | preflight_headers)
    assert preflight.status_code == 200 and "authorization" in preflight.headers["Access-Control-Allow-Headers"].lower()
    refused = guarded.one.http.get("/v1/models", headers=page)
    assert refused.status_code == 401 and refused.headers["Access-Control-Allow-Origin"] == page["Origin"]


@pytest.mark.parametrize(
    "head",
    [
        "Authorization: Bearer {}",
        "authorization: bEaReR   {}",
        "X-API-KEY: {}",
        "x-api-key:{}  ",
        "Authorization: Basic eA==\r\nX-Api-Key: {}",
        "X-API-Key: {}\r\nAuthorization: Bearer of.a.proxy",
    ],
)
def test_headers_are_read_whatever_their_case(guarded: GuardedGateways, head: str) -> None:
    request = f"GET /v1/models HTTP/1.1\r\nHost: a\r\n{head.format(guarded.keys['alice'])}\r\n\r\n"
    with Raw(guarded.one) as connection:
        assert connection.send(request.encode()).answer().status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"Authorization: {}",
        b"Authorization: Token {}",
        b"X_API_Key: {}",
        b"X-API-Key: {}0",
        b"X-API-Key: {}\xc2\xa0",
        b"Authorization: Bearer {}\r\nX-API-Key: another",
        b"X-API-Key: {}\r\nX-API-Key: another",
        b"X-API-Key: ",
        "Authorızation: Bearer {}".encode(),
        b"X-API-Key: Bearer {}",
    ],
)
def test_what_is_nearly_a_key_is_none(guarded: GuardedGateways, head: bytes) -> None:
    request = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n" + head.replace(b"{}", guarded.keys["alice"].encode()) + b"\r\n\r\n"
    with Raw(guarded.one) as connection:
        assert connection.send(request).answer().status in (400, 401)


def test_a_key_in_the_url_is_not_accepted(guarded: GuardedGateways) -> None:
    assert guarded.one.http.get("/v1/models", params={"api_key": guarded.keys["alice"]}).status_code == 401


def test_a_refusal_does_not_wait_for_the_body(guarded: GuardedGateways) -> None:
    with Raw(guarded.one) as connection:
        connection.send(b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        assert connection.answer().status == 401


def test_job_answers_only_its_holder_at_every_gateway(guarded: GuardedGateways, gateway: Gateway) -> None:
    with guarded.as_("alice") as alice, guarded.as_("alice", guarded.other) as elsewhere, guarded.as_("bob") as bob:
        job = accepted_id(classify_later(alice))
        eventually(lambda: elsewhere.get(f"/v1/jobs/{job}").json()["state"] == "done", "the job is done")
        for stranger in (bob, gateway.http):
            for path in (f"/v1/jobs/{job}", f"/v1/jobs/{job}/result", f"/v1/jobs/{job}/events"):
                problem(stranger.get(path), 404, "not-found")
            problem(stranger.delete(f"/v1/jobs/{job}"), 404, "not-found")
        assert elsewhere.get(f"/v1/jobs/{job}/result").status_code == 200
        assert "event: done" in elsewhere.get(f"/v1/jobs/{job}/events").text
        assert elsewhere.delete(f"/v1/jobs/{job}").status_code == 204


def test_a_job_without_a_holder_answers_no_holder(guarded: GuardedGateways, gateway: Gateway) -> None:
    job = accepted_id(classify_later(gateway.http))
    with guarded.as_("alice") as alice:
        problem(alice.get(f"/v1/jobs/{job}"), 404, "not-found")
        problem(alice.delete(f"/v1/jobs/{job}"), 404, "not-found")
    assert gateway.http.get(f"/v1/jobs/{job}").status_code == 200


def test_the_same_idempotency_key_of_two_holders_is_two_things(guarded: GuardedGateways, gateway: Gateway) -> None:
    with guarded.as_("alice") as alice, guarded.as_("bob") as bob:
        jobs = [accepted_id(classify_later(client, step, Idempotency_Key="mine")) for step, client in enumerate((alice, bob, gateway.http))]
        again = [
            accepted_id(classify_later(client, step, Idempotency_Key="mine")) for step, client in enumerate((alice, bob, gateway.http))
        ]
        assert jobs == again and len(set(jobs)) == 3
        problem(classify_later(alice, 7, Idempotency_Key="mine"), 422, "invalid-option")


@pytest.mark.parametrize(("name", "allowed"), [("alice", "high"), ("modest", "normal"), ("last", "low")])
def test_a_priority_above_that_of_the_key_is_refused(guarded: GuardedGateways, worker: Worker, name: str, allowed: str) -> None:
    with guarded.as_(name) as client:
        for priority in ("high", "normal", "low"):
            answer = client.post("/v1/classify", content=picture(1), params={"priority": priority})
            if "high normal low".index(priority) < "high normal low".index(allowed):
                assert problem(answer, 422, "invalid-option")["field"] == "priority"
            else:
                assert answer.status_code == 200 and worker.done[-1].priority == priority
        assert client.post("/v1/classify", content=picture(1)).status_code == 200
        assert worker.done[-1].priority == ("low" if allowed == "low" else "normal")


def test_unfinished_items_of_holder_are_counted_over_gateways(guarded: GuardedGateways, worker: Worker) -> None:
    worker.pause()
    with guarded.as_("few") as few, guarded.as_("few", guarded.other) as elsewhere, guarded.as_("alice") as alice:
        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(lambda number: classify_later((few, elsewhere)[number % 2]), range(24)))
        jobs = [accepted_id(answer) for answer in answers if answer.status_code == 202]
        assert len(jobs) == 3
        for answer in answers:
            if answer.status_code != 202:
                problem(answer, 429, "key-share")
                assert int(answer.headers["Retry-After"]) >= 1
        accepted_id(classify_later(alice))
        worker.finish_all()
        accepted_id(classify_later(elsewhere))
        files = [("image", (f"{index}.png", picture(index))) for index in range(4)]
        problem(few.post("/v1/classify", files=files), 413, "too-large")


def test_requests_beyond_rate_are_refused_before_their_bodies(guarded: GuardedGateways) -> None:
    """The rate is one in 20 seconds, and each gateway lets one through at first."""
    with guarded.as_("slow") as slow, guarded.as_("slow", guarded.other) as elsewhere:
        answers = [client.get("/v1/models") for _ in range(3) for client in (slow, elsewhere)]
        assert [answer.status_code for answer in answers] == [200, 200, 429, 429, 429, 429]
        problem(answers[2], 429, "key-share")
        assert int(answers[2].headers["Retry-After"]) >= 20
    with Raw(guarded.one) as connection:
        head = f"POST /v1/classify HTTP/1.1\r\nHost: a\r\nX-API-Key: {guarded.keys['slow']}\r\nContent-Length: 100000\r\n\r\n"
        assert connection.send(head.encode()).answer().status == 429


def test_metrics_and_status_need_a_right(guarded: GuardedGateways) -> None:
    for path in ("/metrics", "/v1/status"):
        for name, status in (("alice", 403), ("watcher", 200), ("root", 200)):
            with guarded.as_(name) as client:
                answer = client.get(path)
                assert answer.status_code == status
                assert status == 200 or answer.json()["type"] == "urn:opsin:forbidden"


def test_model_control_needs_a_right(guarded: GuardedGateways) -> None:
    for name in ("alice", "watcher"):
        with guarded.as_(name) as client:
            assert client.post("/v2/repository/models/reds/unload").status_code == 403
            assert client.post("/v2/repository/index").status_code == 200
    with guarded.as_("root") as root:
        assert root.post("/v2/repository/models/unknown/unload").status_code == 404


def test_added_and_revoked_keys_count_soon_and_bad_lines_do_not(guarded: GuardedGateways) -> None:
    """A rotation: the new key of a name finds the jobs of the old one, which is then revoked."""
    old, new = new_key(), new_key()
    before = guarded.file.read_text()
    guarded.add(format_line(ApiKey("carol"), hash_key(old.encode())))
    eventually(lambda: guarded.admits(old), "the new key is known")
    with httpx2.Client(base_url=guarded.one.url, headers={"X-API-Key": old}) as client:
        job = accepted_id(classify_later(client))
    guarded.file.write_text(f"{before}mallory {SECRET}\n{format_line(ApiKey('carol'), hash_key(new.encode()))}\n")
    eventually(lambda: guarded.admits(new) and guarded.refuses(old), "one key has taken the place of the other")
    assert httpx2.get(f"{guarded.other.url}/v1/jobs/{job}", headers={"X-API-Key": new}).status_code == 200
    guarded.file.write_text(before)
    eventually(lambda: guarded.refuses(new) and guarded.admits(guarded.keys["alice"]), "carol is gone")


def waiting(worker: Worker) -> int:
    with worker.redis() as db:
        return int(db.scard("queue:jobs"))


def test_removed_holder_gets_pending_answer_and_no_further_event(guarded: GuardedGateways, worker: Worker) -> None:
    key, before = new_key(), guarded.file.read_text()
    guarded.add(format_line(ApiKey("dave"), hash_key(key.encode())))
    eventually(lambda: guarded.admits(key), "dave is known")
    worker.pause()
    with httpx2.Client(base_url=guarded.one.url, headers={"X-API-Key": key}, timeout=60) as client:
        job = accepted_id(classify_later(client))
        with ThreadPoolExecutor(1) as thread, client.stream("GET", f"/v1/jobs/{job}/events") as stream:
            lines = stream.iter_lines()
            assert any("queued" in line for line in lines)
            under_way = thread.submit(client.post, "/v1/classify", content=picture(2))
            eventually(lambda: waiting(worker) == 2, "both wait in the queue")
            guarded.file.write_text(before)
            eventually(lambda: guarded.refuses(key), "dave is gone")
            worker.resume()
            assert not any("event:" in line and "queued" not in line for line in lines)  # its place may have changed before
            assert under_way.result().status_code == 200
            assert client.get(f"/v1/jobs/{job}").status_code == 401


def everything(db: redis.Redis) -> list[object]:
    """Read all that the queue keeps."""
    read = {"string": db.get, "hash": db.hgetall, "set": db.smembers, "stream": db.xrange, "zset": lambda name: db.zrange(name, 0, -1)}
    return [(name, read[kind](name)) for name in db.scan_iter("*") if (kind := db.type(name)) in read]


def test_no_key_stands_in_a_log_or_in_the_queue(guarded: GuardedGateways, shared: Shared, tmp_path: Path) -> None:
    """A gateway of its own is asked in all ways, and reads a record of the queue that holds something else."""
    key, file = new_key(), tmp_path / "keys"
    file.write_text(f"erin {key}\n{format_line(ApiKey('erin'), hash_key(key.encode()))}\n" + f"{SECRET}\n" * 20)
    with gateway_process(shared.redis_url, api_keys_file=file, log_level="DEBUG") as running:
        for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {SECRET}"}, {"X-API-Key": key, "X-Request-Timeout": "x"}):
            running.http.post("/v1/classify", content=b"nothing", headers=headers)
            running.http.get("/metrics", headers=headers)
        with shared.worker.redis() as db, httpx2.Client(base_url=running.url, headers={"X-API-Key": key}, timeout=60) as client:
            job = accepted_id(classify_later(client))
            db.hset(f"record:{job}", "state", "of another world")
            assert client.get(f"/v1/jobs/{job}").status_code == 503
            assert "erin" in str(everything(db)) and not any(secret in str(everything(db)) for secret in (key, SECRET))
            client.delete(f"/v1/jobs/{job}")
        running.terminate()
        out, err = running.process.communicate(60)
        assert (
            "ignoring invalid lines in the API key file" in err
            and '"lines": [1, 3, 4, 5, 6, 7, 8, 9, 10, 11], "count": 21' in err
            and "queue key unusable" in err
        )
        for secret in (key, key.removeprefix("opsin_"), SECRET):
            assert secret not in out + err
