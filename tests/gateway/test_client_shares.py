"""One client among others: its share of connections, of requests behind a proxy, and of the queue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from server.supervisor.private_valkey import PrivateValkey
from tests.gateway.test_connections import HEALTH, clients, leave_alone, length
from tests.support.fake_worker import Worker, make_spec, picture
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.raw_http import NOTHING, Answer, Raw, post
from tests.support.waiting import eventually
from tests.tasks.test_inpaint import SPEC as INPAINT


@contextmanager
def open_requests(gateway: Gateway, source: str, count: int, *headers: str) -> Iterator[list[Raw]]:
    """Open connections with a complete request each, whose answer takes as long as its worker is paused."""
    image = picture(3)
    with ExitStack() as closing:
        opened = [closing.enter_context(Raw(gateway, source)) for _ in range(count)]
        for raw in opened:
            raw.send(post("/v1/classify", length(len(image)), "X-Request-Timeout: 3600", *headers, body=image))
        yield opened


@contextmanager
def limited_gateway(url: str, max_connections: int) -> Iterator[Gateway]:
    """Start a gateway with this many connections, all of them free."""
    with gateway_process(url, max_connections=max_connections) as gateway:
        leave_alone(gateway)
        yield gateway


def test_client_keeps_quarter_of_connections_if_others_need_them(valkey: PrivateValkey) -> None:
    with Worker(valkey.url, [make_spec()]) as worker, limited_gateway(valkey.url, 8) as gateway:
        worker.pause()
        with open_requests(gateway, "127.0.0.9", 8) as greedy:
            eventually(lambda: len(clients(gateway)) == 8, "all are taken")
            others = [Raw(gateway, f"127.0.1.{number}") for number in range(1, 7)]
            assert [other.send(HEALTH).answer().status for other in others] == [200] * 6
            with Raw(gateway, "127.0.1.7") as one_more:
                assert one_more.send(HEALTH).answer() == NOTHING, "no client has more than a quarter"
            assert all(lost.answer() == NOTHING for lost in greedy[2:]), "the newest, whatever they requested"
            worker.resume()
            assert [connection.answer().status for connection in greedy[:2]] == [200] * 2
            for raw in others:
                raw.socket.close()


def test_connection_is_not_taken_for_client_with_a_quarter(valkey: PrivateValkey) -> None:
    with Worker(valkey.url, [make_spec()]) as worker, limited_gateway(valkey.url, 8) as gateway:
        worker.pause()
        with open_requests(gateway, "127.0.0.9", 5) as greedy, open_requests(gateway, "127.0.0.8", 3) as second:
            eventually(lambda: len(clients(gateway)) == 8, "all are taken")
            with Raw(gateway, "127.0.0.8") as third:
                assert third.send(HEALTH).answer() == NOTHING, "it has a quarter and more"
            worker.resume()
            assert [raw.answer().status for raw in greedy + second] == [200] * 8


def test_low_work_beyond_half_is_refused_before_its_body(valkey: PrivateValkey) -> None:
    with (
        Worker(valkey.url, [make_spec()]) as worker,
        gateway_process(valkey.url, queue_max_items=4) as gateway,
        ThreadPoolExecutor(3) as pool,
    ):
        worker.pause()
        low = [pool.submit(gateway.classify, picture(1), priority="low") for _ in range(2)]
        eventually(lambda: gateway.metric("opsin_queue_depth", priority="low") == 2, "half of the queue is theirs")
        with Raw(gateway, "127.0.0.9") as another:
            refused = another.send(post("/v1/classify?priority=low", length(1000))).answer()
        document = json.loads(refused.body)
        assert (refused.status, document["type"]) == (429, "urn:opsin:queue-full")
        assert "priority low" in document["detail"]
        assert gateway.classify_all(picture(1), fields={"priority": "low"}).status_code == 429
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["bm8gaW1hZ2U="]}
        undecoded = gateway.http.post("/v2/models/reds/infer", json={"inputs": [tensor], "parameters": {"priority": 3}})
        assert undecoded.status_code == 429, "it is not decoded, so it may be something else than an image"
        normal = pool.submit(gateway.classify, picture(2))
        eventually(lambda: gateway.metric("opsin_queue_depth", priority="normal") == 1, "others find room")
        worker.resume()
        assert [response.result().status_code for response in (*low, normal)] == [200] * 3


def test_requests_of_a_closed_connection_are_cancelled(valkey: PrivateValkey) -> None:
    with Worker(valkey.url, [make_spec()]) as worker, limited_gateway(valkey.url, 4) as gateway:
        worker.pause()
        with open_requests(gateway, "127.0.0.9", 4), worker.redis() as db:
            eventually(lambda: len(list(db.scan_iter("job:*"))) == 4, "all of it is in the queue")
            assert Raw(gateway, "127.0.1.1").send(HEALTH).answer().status == 200
            eventually(lambda: len(list(db.scan_iter("job:*"))) == 3, "the newest has left the queue")


@pytest.mark.parametrize(("priority", "before"), [("normal", 2), ("high", 4)])
def test_work_beyond_first_of_a_request_lets_others_pass(valkey: PrivateValkey, priority: str, before: int) -> None:
    """An eighth of a second for each image: two of the four have their turn at once."""
    worker = Worker(valkey.url, [make_spec()])
    worker.items_per_second = 8.0
    with worker, gateway_process(valkey.url) as gateway, ThreadPoolExecutor(2) as pool, worker.redis() as db:
        worker.pause()
        much = pool.submit(gateway.classify_all, *map(picture, range(4)), priority=priority)
        eventually(lambda: len(list(db.scan_iter("job:*"))) == 4, "all of it is in the queue")
        little = pool.submit(gateway.classify, picture(4), priority=priority)
        eventually(lambda: len(list(db.scan_iter("job:*"))) == 5, "and the other one behind it")
        worker.resume()
        assert (much.result().status_code, little.result().status_code) == (200, 200)
        requests = [job.id.partition("-")[0] for job in worker.done]
        assert requests.index(next(one for one in requests if requests.count(one) == 1)) == before


def test_behind_trusted_proxy_forwarded_address_is_counted(valkey: PrivateValkey) -> None:
    """Connections of a proxy belong to no client: each may have requests for a quarter of all connections."""
    behind = {"max_connections": 16, "trusted_proxies": ["127.0.0.7"]}
    with Worker(valkey.url, [make_spec()]) as worker, gateway_process(valkey.url, **behind) as gateway:
        worker.pause()
        with open_requests(gateway, "127.0.0.7", 4, "X-Forwarded-For: 192.0.2.1") as connections:
            eventually(lambda: gateway.count_in_flight() == 4, "a quarter is under way")

            def post_forwarded(path: str) -> Answer:
                with Raw(gateway, "127.0.0.7") as fifth:
                    return fifth.send(post(path, length(1000), "X-Forwarded-For: 192.0.2.1")).answer()

            answer = post_forwarded("/v1/classify")
            document = json.loads(answer.body)
            assert (answer.status, document["type"]) == (429, "urn:opsin:client-share"), "before its body"
            assert "192.0.2.1" in document["detail"] and int(answer.headers["retry-after"]) >= 1
            answer = post_forwarded("/v2/models/reds/infer")
            assert answer.status == 429 and json.loads(answer.body).keys() == {"error"}
            assert gateway.metric("opsin_rejected_total", reason="client_share") == 2
            for head in (b"X-Forwarded-For: 192.0.2.2\r\n\r\n", b"\r\n"):
                with Raw(gateway, "127.0.0.7") as other:
                    assert other.send(HEALTH[:-2] + head).answer().status == 200
            worker.resume()
            assert [raw.answer().status for raw in connections] == [200] * 4
            assert gateway.metric("opsin_in_flight") == 0


def test_one_client_leaves_a_quarter_of_the_queue_to_others(valkey: PrivateValkey) -> None:
    with Worker(valkey.url, [make_spec()]) as worker, gateway_process(valkey.url, queue_max_items=8) as gateway, worker.redis() as db:
        worker.pause()
        with open_requests(gateway, "127.0.0.9", 6) as greedy:
            eventually(lambda: gateway.metric("opsin_queue_depth") == 6, "three quarters are taken")
            with open_requests(gateway, "127.0.0.9", 1) as [refused]:
                answer = refused.answer()
            assert (answer.status, json.loads(answer.body)["type"]) == (429, "urn:opsin:client-share")
            assert int(answer.headers["retry-after"]) >= 1
            with open_requests(gateway, "127.0.0.8", 1) as [other]:
                eventually(lambda: gateway.metric("opsin_queue_depth") == 7, "another one's is there")
                with Raw(gateway, "127.0.0.7") as late:
                    answer = late.send(post("/v1/inpaint", length(1000))).answer()
                assert (answer.status, json.loads(answer.body)["type"]) == (429, "urn:opsin:queue-full"), "before its body"
                owners = db.hgetall("queue:owners")
                assert sorted(int(owner.split()[0]) for owner in owners.values()) == [1, 6]
                assert "127.0.0" not in str(owners) + str([db.get(key) for key in db.scan_iter("job:*")])
                worker.resume()
                assert {raw.answer().status for raw in [*greedy, other]} == {200}
        eventually(lambda: not db.exists("queue:owners", "queue:jobs"), "nothing is left of them")


def test_long_work_beyond_share_is_refused_before_image_is_read(valkey: PrivateValkey) -> None:
    with Worker(valkey.url, [INPAINT]) as worker, gateway_process(valkey.url) as gateway, ExitStack() as closing:
        worker.pause()

        def ask(source: str, image: bytes) -> Raw:
            twenty_seconds = "/v1/inpaint?mask=center&method=network&sampler=ddim&steps=50&samples=8"
            return closing.enter_context(Raw(gateway, source)).send(post(twenty_seconds, length(len(image)), body=image))

        for count, source in enumerate(["127.0.0.9", "127.0.0.9", "127.0.0.9", "127.0.0.8"], start=1):
            ask(source, picture(3))
            eventually(lambda count=count: gateway.metric("opsin_queue_depth") == count, "it waits")
        answer = ask("127.0.0.9", b"no image").answer()
        assert (answer.status, json.loads(answer.body)["type"]) == (429, "urn:opsin:client-share")
        assert ask("127.0.0.8", b"no image").answer().status == 415
