"""HTTP servers and proxies for tests: scripted answers, a TLS host with its own authority, a slow link, a proxy under a prefix."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import trustme

from tests.support.raw_http import Quiet, serving

RESULT = {
    "id": "r-1",
    "model": "flags",
    "version": "1",
    "results": [
        {
            "predictions": [{"label": "animals", "index": 0, "score": 0.75}, {"label": "food", "index": 1, "score": 0.25}],
            "merging": {"rung": "fast", "schedule": [8, 8], "tokens_in": 65, "tokens_out": 49},
        }
    ],
    "timing": {"prepare_ms": 1, "queue_ms": 2, "batch_wait_ms": 3, "inference_ms": 4, "total_ms": 10, "batch_size": 2},
}


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: object = field(default_factory=lambda: RESULT)
    """Body of the answer. Bytes and text are sent as they are, everything else as JSON."""
    headers: dict[str, str] = field(default_factory=dict)
    after: threading.Event | None = None
    """The answer is held back until this is set."""


@dataclass(frozen=True)
class Request:
    path: str
    headers: Message
    body: bytes


@dataclass
class Script:
    url: str
    requests: list[Request] = field(default_factory=list)


@contextmanager
def serve_script(answers: Sequence[Answer] | Callable[[Request], Answer]) -> Iterator[Script]:
    """Serve `answers` in turn, the last one again and again; or what is answered to each request, of which several may be asked at once."""

    class Handler(Quiet, BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Request(self.path, self.headers, body)
            answer = answers(request) if callable(answers) else answers[min(len(script.requests), len(answers) - 1)]
            script.requests.append(request)
            if answer.after:
                answer.after.wait(10)
            text = answer.body if isinstance(answer.body, str | bytes) else json.dumps(answer.body)
            data = text.encode() if isinstance(text, str) else text
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            with suppress(ConnectionError):  # clients may end before they are answered
                self.end_headers()
                self.wfile.write(data)

        def do_GET(self) -> None:
            self.do_POST()

        def do_DELETE(self) -> None:
            self.do_POST()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script = Script(f"http://127.0.0.1:{server.server_port}")
    with serving(server):
        yield script


AUTHORITY = trustme.CA()


@dataclass(frozen=True)
class RecordedRequest:
    method: str
    path: str
    headers: dict[str, str]
    """Headers by lower-case name."""
    body: bytes


@dataclass(frozen=True)
class HostAnswer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """The connection breaks off after so many bytes of the body."""


@dataclass
class Host:
    """`connections` counts those that were accepted, `asked` holds requests."""

    port: int
    connections: int = 0
    requests: list[RecordedRequest] = field(default_factory=list)

    def url(self, path: str, name: str = "localhost") -> str:
        return f"https://{name}:{self.port}{path}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    host: Host

    def get_request(self) -> tuple[Any, Any]:
        connection = super().get_request()
        self.host.connections += 1
        return connection

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that break off are what is tested here."""


def trust(folder: Path) -> Path:
    """Return a file with the certificate of the tests' authority, for SSL_CERT_FILE."""
    file = folder / "authority.pem"
    AUTHORITY.cert_pem.write_to_path(file)
    return file


@contextmanager
def host(answer: Callable[[RecordedRequest], HostAnswer], *names: str, authority: trustme.CA = AUTHORITY) -> Iterator[Host]:
    """names: of its certificate; `localhost` if there is none."""

    class Handler(Quiet, BaseHTTPRequestHandler):
        def setup(self) -> None:
            self.request.settimeout(60)
            with suppress(OSError):
                self.request.do_handshake()
            super().setup()

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = RecordedRequest(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            found.requests.append(request)
            reply = answer(request)
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body[: reply.cut])
            self.close_connection = self.close_connection or reply.cut is not None

        def do_POST(self) -> None:
            self.do_GET()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names or ("localhost",)).configure_cert(context)
    server = _Server(("127.0.0.1", 0), Handler)
    found = server.host = Host(server.server_port)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with serving(server):
        yield found


PIECE = 64 * 1024


class SlowLink:
    def __init__(self, target: int, bytes_per_second: float) -> None:
        self._target = target
        self._pace = bytes_per_second
        self._free_at = [0.0, 0.0]
        """Loop time at which each direction has sent what it was given."""
        self.port = 0

    async def serve(self) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0, limit=PIECE)
        self.port = server.sockets[0].getsockname()[1]

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opposite, back = await asyncio.open_connection("127.0.0.1", self._target, limit=PIECE)
        await asyncio.gather(self._pump(reader, back, 0), self._pump(opposite, writer, 1))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: int) -> None:
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            while piece := await source.read(PIECE):
                self._free_at[direction] = max(self._free_at[direction], loop.time()) + len(piece) / self._pace
                await asyncio.sleep(self._free_at[direction] - loop.time())
                sink.write(piece)
                await sink.drain()
        sink.close()


@contextmanager
def slow_link(target: int, bytes_per_second: float) -> Iterator[int]:
    """Slow the link to a port of this machine. Yields the port to use instead."""
    loop = asyncio.new_event_loop()
    link = SlowLink(target, bytes_per_second)
    loop.run_until_complete(link.serve())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield link.port
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@contextmanager
def proxy(target: str, prefix: str) -> Iterator[str]:
    """Yield the address under which the target is served; everything outside the prefix is 404."""

    class Handler(Quiet, BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # an answer ends with its connection

        def do_GET(self) -> None:
            if not self.path.startswith(prefix + "/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in {*HOP_BY_HOP, "host"}}
            with httpx2.stream(self.command, target + self.path.removeprefix(prefix), headers=headers, content=body, timeout=60) as answer:
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name.lower() not in HOP_BY_HOP:
                        self.send_header(name, value)
                self.end_headers()
                for piece in answer.iter_raw():
                    self.wfile.write(piece)
                    self.wfile.flush()

        def do_POST(self) -> None:
            self.do_GET()

        def do_DELETE(self) -> None:
            self.do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}{prefix}/"
