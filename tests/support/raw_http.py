"""Raw HTTP requests that no client library would send, and small HTTP servers in threads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from socketserver import BaseServer
from types import TracebackType

from tests.support.gateway_process import Gateway
from tests.support.waiting import WAIT_S


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


NOTHING = Answer(0)
"""The connection was closed without a word."""


class Raw:
    """One connection to a gateway, from a loopback address of one's own choice."""

    def __init__(self, gateway: Gateway, source: str = "127.0.0.1", timeout: float = WAIT_S) -> None:
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=timeout, source_address=(source, 0))
        self._read = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Raw:
        """Send as much as the gateway takes: it may close in the middle."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)
        return self

    def answer(self) -> Answer:
        """Return the next response, or NOTHING once the gateway has closed. Raises TimeoutError."""
        while b"\r\n\r\n" not in self._read:
            if not self._extra():
                return NOTHING
        head, _, rest = self._read.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split()[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._read = rest
        length = 0 if status == 100 else int(headers.get("content-length", 0))
        while len(self._read) < length and self._extra():
            pass
        body, self._read = self._read[:length], self._read[length:]
        return Answer(status, headers, body)

    def is_closed(self) -> bool:
        """Wait until the gateway closes. Raises TimeoutError if it does not."""
        while self._extra():
            pass
        return True

    def _extra(self) -> bool:
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            return False
        self._read += data
        return bool(data)


def post(path: str = "/v1/classify", *headers: str, body: bytes = b"") -> bytes:
    """Build a request with exactly these headers and Host."""
    lines = [f"POST {path} HTTP/1.1", "Host: here", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def ask(gateway: Gateway, data: bytes, timeout: float = WAIT_S) -> Answer:
    """Send one request on a connection of its own."""
    with Raw(gateway, timeout=timeout) as raw:
        return raw.send(data).answer()


class Quiet:
    """A handler that keeps connections, and prints nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def serving(server: BaseServer) -> Iterator[None]:
    """Serve until the block ends, also where a test fails in it, or its process would never end."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
