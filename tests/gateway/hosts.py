"""A TLS server that stands for the rest of the internet: it listens on this machine, with a certificate of the tests' own authority."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

from tests.harness.http import Quiet, serving

AUTHORITY = trustme.CA()


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name."""
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
    asked: list[Asked] = field(default_factory=list)

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


def trusted(folder: Path) -> Path:
    """A file with the certificate of the tests' authority, for SSL_CERT_FILE."""
    file = folder / "authority.pem"
    AUTHORITY.cert_pem.write_to_path(file)
    return file


@contextmanager
def host(answer: Callable[[Asked], HostAnswer], *names: str, authority: trustme.CA = AUTHORITY) -> Iterator[Host]:
    """names: of its certificate; `localhost` if there is none."""

    class Handler(Quiet, BaseHTTPRequestHandler):
        def setup(self) -> None:
            self.request.settimeout(60)
            with suppress(OSError):
                self.request.do_handshake()
            super().setup()

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = Asked(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            found.asked.append(asked)
            given = answer(asked)
            self.send_response(given.status)
            for name, value in {"Content-Length": str(len(given.body)), **given.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(given.body[: given.cut])
            self.close_connection = self.close_connection or given.cut is not None

        def do_POST(self) -> None:
            self.do_GET()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names or ("localhost",)).configure_cert(context)
    server = _Server(("127.0.0.1", 0), Handler)
    found = server.host = Host(server.server_port)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with serving(server):
        yield found
