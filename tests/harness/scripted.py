"""A real HTTP server whose answers a test writes down beforehand: for what a healthy gateway does not do on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.harness.http import Quiet, serving

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
    """Bytes and text are sent as they are, everything else as JSON."""
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
def scripted(answers: Sequence[Answer] | Callable[[Request], Answer]) -> Iterator[Script]:
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
