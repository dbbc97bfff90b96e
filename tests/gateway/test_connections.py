"""Limits of connections and of heads of requests: bytes, time and number are bounded."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator

import psutil
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from server.http.connection_limits import MIN_READ_BYTES, ConnectionLimiter, count_unacknowledged
from server.http.protocol import protocol_with_limits
from server.supervisor.private_valkey import PrivateValkey
from tests.gateway.conftest import Shared
from tests.support.fake_worker import Worker, picture
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.raw_http import NOTHING, Answer, Raw, ask, post
from tests.support.waiting import WAIT_S, eventually

HEALTH = b"GET /health/live HTTP/1.1\r\nHost: here\r\n\r\n"
MB = 1_000_000


def rss(gateway: Gateway) -> int:
    return psutil.Process(gateway.process.pid).memory_info().rss


def clients(gateway: Gateway) -> set[tuple[str, int]]:
    """Return the remote addresses of its connections."""
    return {tuple(one.raddr) for one in psutil.net_connections("tcp") if one.pid == gateway.process.pid and one.raddr}


def leave_alone(gateway: Gateway) -> None:
    """Close our own connections, and wait until it has noticed."""
    gateway.http.close()
    eventually(lambda: not clients(gateway), "nobody is connected")


def length(size: int) -> str:
    return f"Content-Length: {size}"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health/live HTTP/1.1\r\nHost: here\r\nX-Long: " + b"x" * 70_000,
        b"GET /health/live HTTP/1.1\r\nHost: here\r\n" + b"X-Many: x\r\n" * 7_000,
        b"GET /health/live HTTP/1.1\r\nHost: here\r\n" + b"X: x\r\n" * 101 + b"\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: here\r\nX-Long: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\n" + b"N" * 70_000,
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET /?" + b"x" * 70_000,
        b"\r\n" * 40_000,
        post("/v1/classify", "X-Request-ID: " + "7" * 66_000),
    ],
    ids=[
        "a value without end",
        "headers without end",
        "many headers",
        "one large header",
        "a name without end",
        "a large URL",
        "a URL without end",
        "empty lines",
        "a large request id",
    ],
)
def test_a_head_above_64_kib_is_refused(gateway: Gateway, head: bytes) -> None:
    answer = ask(gateway, head)
    assert (answer.status, answer.headers["connection"]) == (431, "close")
    assert answer.headers["content-type"] == "application/problem+json"
    document = json.loads(answer.body)
    assert document["type"] == "urn:opsin:headers-too-large" and document["request_id"]


def test_a_head_of_60_kib_is_fine(gateway: Gateway) -> None:
    assert ask(gateway, b"GET /health/live HTTP/1.1\r\nHost: here\r\nX-Long: " + b"x" * 60_000 + b"\r\n\r\n").status == 200


def test_a_head_without_end_takes_no_memory(gateway: Gateway) -> None:
    before = rss(gateway)
    with Raw(gateway, "127.0.0.2") as raw:
        raw.send(b"GET / HTTP/1.1\r\nHost: here\r\nX-Long: ")
        for _ in range(60):
            raw.send(b"x" * MB)
        assert rss(gateway) - before < 20 * MB
        assert raw.is_closed()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (post("/v1/classify", length(-1)), 400),
        (post("/v1/classify", "Content-Length: +5", body=b"hello"), 400),
        (post("/v1/classify", "Content-Length: 5, 5", body=b"hello"), 400),
        (post("/v1/classify", length(5), length(6), body=b"hello"), 400),
        (post("/v1/classify", length(5), length(5), body=b"hello"), 400),
        (post("/v1/classify", length(10**30)), 400),
        (post("/v1/classify", length(2**63)), 413),
        (post("/v1/classify", length(5), "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
        (post("/v1/classify", "Transfer-Encoding: chunked", body=b"zz\r\n"), 400),
        (post("/v1/classify", "Transfer-Encoding: chunked", body=b"ffffffffffffffffff\r\n"), 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: here\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: here\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: here\r\n\r\n", 400),
        (b"GET /%ff%00 HTTP/1.1\r\nHost: here\r\n\r\n", 404),
        (b"GET /nothing HTTP/1.1\r\nHost: [\r\n\r\n", 400),
        (b"GET /v1/models/ HTTP/1.1\r\nHost: [\r\n\r\n", 400),
        (b"GET /v2/nothing HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
        (b"PUT /v2/health/live HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
        (b"GET /health/live HTTP/1.1\r\n\r\n", 400),
        (b"GET /health/live HTTP/1.1\r\nHost: here\r\nHost: here\r\n\r\n", 400),
        (b"GET /health/live HTTP/1.0\r\nHost: here\r\nHost: there\r\n\r\n", 400),
        (b"GET /health/live HTTP/1.0\r\n\r\n", 200),
        (b"HEAD /health/live HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\nHost: here\r\n\r\n", 404),
        (b"GET /health/live HTTP/1.1\r\nHost: here\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (post("/v1/classify", "Expect: nothing", length(0)), 400),
    ],
)
def test_requests_that_are_none_are_refused_and_never_our_fault(gateway: Gateway, head: bytes, status: int) -> None:
    assert ask(gateway, head).status == status


def test_expect_100_continue_is_continued_or_refused(gateway: Gateway) -> None:
    image = picture(3)
    with Raw(gateway) as raw:
        raw.send(post("/v1/classify", "Expect: 100-continue", length(len(image))))
        assert raw.answer().status == 100
        assert raw.send(image).answer().status == 200
    assert ask(gateway, post("/v1/classify", "Expect: 100-continue", length(10**9))).status == 413


def test_trailers_are_no_headers_and_have_an_end(gateway: Gateway) -> None:
    image = picture(3)
    chunks = b"%x;note=nothing\r\n" % len(image) + image + b"\r\n0\r\n"
    with Raw(gateway) as raw:
        chunked = post("/v1/classify", "Transfer-Encoding: chunked", body=chunks)
        assert raw.send(chunked + b"X-Request-ID: smuggled\r\n\r\n").answer().status == 200
        assert raw.send(HEALTH).answer().status == 200
    before = rss(gateway)
    with Raw(gateway) as raw:
        raw.send(chunked + b"X-Trailer: ")
        for _ in range(60):
            raw.send(b"x" * MB)
        assert raw.is_closed()
    assert rss(gateway) - before < 20 * MB


def test_chunk_extensions_have_an_end(gateway: Gateway) -> None:
    with Raw(gateway) as raw:
        raw.send(post("/v1/classify", "Transfer-Encoding: chunked", body=b"5;"))
        for _ in range(20):
            raw.send(b"x" * MB)
        assert raw.is_closed()


def test_a_body_in_chunks_of_one_byte_is_fine(gateway: Gateway) -> None:
    image = picture(3, (200, 150))
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in image) + b"0\r\n\r\n"
    assert ask(gateway, post("/v1/classify", "Transfer-Encoding: chunked", body=chunks)).status == 200


def test_a_client_that_leaves_is_not_waited_for(gateway: Gateway, worker: Worker) -> None:
    image = picture(3)
    with worker.holding() as hold, Raw(gateway) as raw:
        raw.send(post("/v1/classify", length(len(image)), body=image) * 3)
        hold.wait_for_batch()
        raw.socket.close()
        eventually(lambda: gateway.count_in_flight() == 0, "what it asked first has been cancelled, and the rest not begun")


def test_pipelined_requests_are_answered_in_order_up_to_a_bound(gateway: Gateway) -> None:
    with Raw(gateway) as raw:
        raw.send(HEALTH * 20)
        assert [raw.answer().status for _ in range(20)] == [200] * 20
    with Raw(gateway) as raw:
        raw.send(HEALTH * 5_000)
        answers = []
        while (answer := raw.answer()) != NOTHING:
            answers.append(answer.status)
        assert len(answers) < 100 and set(answers) == {200}


@pytest.mark.parametrize("sent", ["together", "later"])
def test_an_offer_to_speak_another_protocol_is_ignored(gateway: Gateway, worker: Worker, sent: str) -> None:
    """Java's client makes it with each first request. What follows is the body, and never a request of its own."""
    image = picture(3)
    head = post("/v1/classify", length(len(image)), "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    with Raw(gateway) as raw:
        raw.send(head + image + HEALTH if sent == "together" else head)
        if sent == "later":
            eventually(lambda: gateway.count_in_flight() == 1, "the head is here")
            raw.send(image + HEALTH)
        assert [raw.answer().status for _ in range(2)] == [200, 200]
    with Raw(gateway) as raw:
        raw.send(post("/v1/classify", length(len(HEALTH)), "Connection: Upgrade", "Upgrade: websocket") + HEALTH)
        assert raw.answer().status == 415
        assert raw.send(HEALTH).answer().status == 200


def test_a_tunnel_is_refused(gateway: Gateway) -> None:
    assert ask(gateway, b"CONNECT /v1/models HTTP/1.1\r\nHost: here\r\n\r\n").status == 400
    assert ask(gateway, b"CONNECT there:443 HTTP/1.1\r\nHost: there:443\r\n\r\n").status == 400


def test_a_request_is_answered_whatever_comes_behind_it(gateway: Gateway) -> None:
    image = picture(3)
    with Raw(gateway) as raw:
        raw.send(post("/v1/classify", length(len(image)), body=image) + b"\x16\x03\x01")
        assert raw.answer().status == 200
        assert raw.answer() == NOTHING


@pytest.fixture(scope="module")
def unread(shared: Shared) -> Iterator[Raw]:
    """Connection whose client reads none of its answers."""
    with Raw(shared.gateway) as raw:
        yield raw.send(b"GET /docs/static/swagger-ui-bundle.js HTTP/1.1\r\nHost: here\r\n\r\n" * 30)


@pytest.fixture(scope="module")
def slow(shared: Shared, unread: Raw) -> Iterator[dict[str, Answer]]:
    """Answers to clients that stop in the middle. They wait for them at the same time, and while `unread` is not read."""
    beginnings = {
        "silence": b"",
        "part of a line": b"GET /health",
        "part of the headers": b"GET /health/live HTTP/1.1\r\nHost: here\r\nX-Slow: ",
        "empty lines": b"\r\n\r\n",
        "part of the second head": HEALTH + b"GET ",
        "no byte of a body": post("/v1/classify", length(1000), "X-Request-Timeout: 3600"),
        "part of a body": post("/v1/classify", length(100_000), body=b"\xff\xd8\xff" + bytes(60_000)),
        "part of a form": post("/v1/classify", "Content-Type: multipart/form-data; boundary=b", length(5000), body=b"--b\r\n"),
        "part of a chunk": post("/v1/classify", "Transfer-Encoding: chunked", body=b"10\r\nabc"),
        "part of a tensor": post("/v2/models/reds/infer", length(5000), body=b'{"inputs": '),
        "part of an index": post("/v2/repository/index", length(5000), body=b"{"),
        "a body that nobody reads": b"GET /health/live HTTP/1.1\r\nHost: here\r\nContent-Length: 100000\r\n\r\nabc",
    }
    gateway = shared.gateway
    opened = {name: Raw(gateway, "127.0.0.3").send(data) for name, data in beginnings.items()}
    for name in ("part of the second head", "a body that nobody reads"):
        assert opened[name].answer().status == 200
    yield {name: raw.answer() for name, raw in opened.items()}
    for raw in opened.values():
        assert raw.is_closed()
        raw.socket.close()


@pytest.mark.parametrize("stage", ["part of a line", "part of the headers", "empty lines", "part of the second head"])
def test_a_head_has_ten_seconds(slow: dict[str, Answer], stage: str) -> None:
    assert slow[stage].status == 408 and json.loads(slow[stage].body)["type"] == "urn:opsin:too-slow"


@pytest.mark.parametrize("stage", ["silence", "a body that nobody reads"])
def test_idle_connection_is_closed_without_answer(slow: dict[str, Answer], stage: str) -> None:
    assert slow[stage] == NOTHING


@pytest.mark.parametrize("stage", ["no byte of a body", "part of a body", "part of a form", "part of a chunk"])
def test_a_body_without_progress_is_given_up(slow: dict[str, Answer], stage: str) -> None:
    assert (slow[stage].status, slow[stage].headers["content-type"]) == (408, "application/problem+json")
    assert json.loads(slow[stage].body)["type"] == "urn:opsin:too-slow"


@pytest.mark.parametrize("stage", ["part of a tensor", "part of an index"])
def test_the_open_inference_protocol_says_it_in_its_own_shape(slow: dict[str, Answer], stage: str) -> None:
    assert slow[stage].status == 408 and json.loads(slow[stage].body).keys() == {"error"}


LARGE = bytes(range(256)) * 2**16
"""More than the buffers of the system hold."""


async def large_answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(LARGE)).encode())]})
    await send({"type": "http.response.body", "body": LARGE})


async def test_answer_is_complete_although_client_reads_late() -> None:
    """The answer ends for the gateway when it is written; then a connection that sends nothing is closed."""
    protocol = protocol_with_limits(ConnectionLimiter(9, []))
    server = uvicorn.Server(uvicorn.Config(large_answer, http=protocol, lifespan="off", timeout_keep_alive=1, log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname(), limit=MB)
        writer.write(HEALTH)
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(1.5)  # longer than it is kept alive
        assert await reader.readexactly(len(LARGE)) == LARGE
        assert await reader.read() == b"", "no other request follows"
        writer.close()
        server.should_exit = True
        await serving


def test_reading_counts_while_system_buffers_are_full() -> None:
    """System buffers hold megabytes: a client that reads 400 kB/s leaves nothing to write for longer than the bound of 10 s."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        sender, _ = server.accept()
        with sender:
            sender.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    sender.send(bytes(MB))
            waiting = count_unacknowledged(sender)
            assert waiting > MIN_READ_BYTES
            client.recv(MB)
            eventually(lambda: count_unacknowledged(sender) < waiting - MIN_READ_BYTES, "it is seen")


def test_connections_beyond_the_bound_are_closed_at_once(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, max_connections=8) as gateway:
        leave_alone(gateway)
        opened = [Raw(gateway) for _ in range(8)]
        for raw in opened:
            assert raw.send(HEALTH).answer().status == 200
        with Raw(gateway) as ninth:
            assert ninth.send(HEALTH).answer() == NOTHING
        for raw in opened:
            assert raw.send(HEALTH).answer().status == 200
        opened.pop().socket.close()
        eventually(lambda: ask(gateway, HEALTH).status == 200, "there is room again")


def test_strangers_leave_no_line_in_the_log(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url) as gateway:
        for data in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", HEALTH):
            ask(gateway, data)
        gateway.terminate()
        _, log = gateway.process.communicate(timeout=WAIT_S)
        assert [json.loads(line)["event"] for line in log.splitlines()] == ["listening", "gateway draining"]


@pytest.mark.usefixtures("slow")
def test_an_answer_that_is_not_read_is_given_up(gateway: Gateway, unread: Raw) -> None:
    address = unread.socket.getsockname()
    eventually(lambda: address not in clients(gateway), "the connection is closed")
