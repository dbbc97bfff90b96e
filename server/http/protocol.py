"""uvicorn's HTTP protocol with limits on request heads: their size, their number and how slowly they may arrive.

uvicorn itself has none. All uses of its private API are in this file. Bodies are limited by `middleware`.
"""

from __future__ import annotations

import asyncio
import re
import socket
import uuid
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from server.http.connection_limits import ConnectionLimiter, SlowClientGuard
from server.http.middleware import BODY_COMPLETE
from server.http.problems import MEDIA_TYPE, Problem, ProblemKind

MAX_HEAD_BYTES = 64 * 1024
"""Maximum size of request line and headers; also of what arrives between two bytes of a body, and of trailers."""
HEAD_TIMEOUT_S = 10.0
MAX_HEADERS = 100
VERSIONS = ("1.1", "1.0")
MAX_PIPELINED_REQUESTS = 32
"""Maximum number of requests that wait behind the one that is being answered."""
MAX_LINGER_BYTES = 1024 * 1024
LINGER_TIMEOUT_S = 2.0
"""Limits on reading the rest of a refused request: if it were not read, its sender could see a reset connection instead of the refusal."""

_NAME = rb"[A-Za-z0-9._~!$&'()*+,;=-]*"
_IPV6 = rb"\[(?P<ipv6>[0-9A-Fa-f:.]+)(?:%[A-Za-z0-9._~-]+)?\]"
_PORT = rb"(?::0*(?P<port>[0-9]{0,5}))?"
_HOST = re.compile(rb"(?:" + _IPV6 + rb"|" + _NAME + rb"(?:%[0-9A-Fa-f]{2}" + _NAME + rb")*)" + _PORT)
_ABSOLUTE = re.compile(rb"https?://(?P<authority>[^/?#]+)(?P<path>[^#]*)", re.IGNORECASE)


@dataclass(eq=False, slots=True)
class HeadBufferingTransport:
    """A transport for one response. It holds the head until the end of this iteration of the event loop and sends it with what follows,
    which saves a packet, and one wakeup of the client, per response."""

    _transport: asyncio.Transport
    _loop: asyncio.AbstractEventLoop
    _head: bytes = b""
    _has_head: bool = False

    def write(self, data: bytes) -> None:
        if self._has_head:
            self._transport.write(self._head + data if self._head else data)
            self._head = b""
        else:
            self._has_head = True
            self._head = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)


class RequestHeadError(Exception):
    """Raised in the parser's callbacks to stop it in the middle of a request."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection with limits."""

    limits: ConnectionLimiter

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._bytes_since_progress = 0
        """Number of bytes since the last byte of a body or the last end of a request."""
        self._in_head = self._in_body = False
        self._open_cycles: deque[RequestResponseCycle] = deque()
        """Requests whose responses have not ended, the oldest first."""
        self._refusal: Problem | None = None
        self._discarded_bytes = 0
        self._timeout_handle: asyncio.TimerHandle | None = None
        """Set while the client has to send the rest of a head, or of a request that is already answered."""
        self._slow_client_guard: SlowClientGuard

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._slow_client_guard = SlowClientGuard(transport, self.loop)
        if not self.limits.admit(transport):
            transport.abort()
            return
        super().connection_made(transport)
        self._timeout_handle = self.loop.call_later(HEAD_TIMEOUT_S, self._on_head_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self.limits.release(self.transport)
        self._cancel_timeout()
        self._slow_client_guard.stop()
        for cycle in self._open_cycles:  # uvicorn notifies only the latest, which may wait behind the one that runs
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    @property
    def waits_for_client(self) -> bool:
        """Whether no complete request is waiting for its response."""
        if self.transport.is_closing():
            return False
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete or self.cycle.more_body)

    @property
    def is_busy(self) -> bool:
        """Whether a response is to be made, or sent to its end."""
        return bool(self._open_cycles) or self.transport.is_closing()

    def leave(self, *, at_once: bool) -> None:
        """Close after the latest response, or now if there is none. Unless `at_once`: after one that can still announce it."""
        if self._open_cycles:
            self.cycle.keep_alive &= self.cycle.response_started and not at_once
        elif at_once and not self._in_head:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            self._discard_refused_body(data)
            return
        self._unset_keepalive_if_required()
        self._bytes_since_progress += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or Problem(ProblemKind.INVALID_REQUEST, "not an HTTP/1.1 request"))
            return
        if self._bytes_since_progress > MAX_HEAD_BYTES:
            self._refuse(_too_large())
        elif self._in_head or (self._bytes_since_progress and not self._in_body):
            self._timeout_handle = self._timeout_handle or self.loop.call_later(HEAD_TIMEOUT_S, self._on_head_timeout)
        elif not self._in_body and self.waits_for_client and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._feed(self._without_upgrade() + data[upgrade.args[0] :])

    def _without_upgrade(self) -> bytes:
        """Replace the parser and return the head without `Upgrade`, after which the old one would read the body as another protocol."""
        first = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        headers = [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        with suppress(AttributeError):  # httptools < 0.6.3
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return b"".join([first, *headers, b"\r\n"])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        if self.parser.get_method() == b"CONNECT":
            self._stop_parser(Problem(ProblemKind.INVALID_REQUEST, "this server is not a proxy"))
        if self.parser.should_upgrade():
            return  # the head is parsed again without the header
        if len(self.headers) > MAX_HEADERS:
            self._stop_parser(Problem(ProblemKind.HEADERS_TOO_LARGE, f"more than {MAX_HEADERS} headers"))
        try:
            self._check_head()
        except Problem as problem:
            self._stop_parser(problem)
        if len(self.pipeline) >= MAX_PIPELINED_REQUESTS:
            self._stop_parser(Problem(ProblemKind.INVALID_REQUEST, f"more than {MAX_PIPELINED_REQUESTS} requests wait on this connection"))
        super().on_headers_complete()
        self.headers = []  # a list for trailers: no one uses them, and they must not be taken for headers
        self._open_cycles.append(self.cycle)
        self.cycle.keep_alive &= not self.limits.are_leaving
        self.cycle.transport = HeadBufferingTransport(self.transport, self.loop)  # type: ignore[assignment]  # it has all methods that are used
        self._in_head, self._in_body = False, True
        self._bytes_since_progress = 0
        self._cancel_timeout()

    def _check_head(self) -> None:
        """Check version, size, Host and Transfer-Encoding. Raises Problem."""
        version = self.parser.get_http_version()
        if version not in VERSIONS:
            raise Problem(ProblemKind.INVALID_REQUEST, f"HTTP/{version}: only HTTP/1.1 and HTTP/1.0 are supported")
        size = len(self.url)
        hosts, codings = [], []
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts.append(value)
            elif name == b"transfer-encoding":
                codings.append(value)
        if size > MAX_HEAD_BYTES:
            raise _too_large()
        check_host(hosts, version)
        if codings:
            check_coding(codings, version)
        if self.url[:1] != b"/" and self.url != b"*":
            host, self.url = split_absolute(self.url)
            self.headers[:] = [header for header in self.headers if header[0] != b"host"] + [(b"host", host)]  # RFC 9112, 3.2.2

    def on_body(self, body: bytes) -> None:
        self._bytes_since_progress = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._bytes_since_progress, self._in_body = 0, False
        self.scope["state"][BODY_COMPLETE] = True
        super().on_message_complete()
        self._cancel_timeout()

    def _on_head_timeout(self) -> None:
        self._timeout_handle = None
        if self.flow.read_paused:  # by the server
            self._timeout_handle = self.loop.call_later(HEAD_TIMEOUT_S, self._on_head_timeout)
        elif self._in_head or self._bytes_since_progress:
            self._refuse(Problem(ProblemKind.TOO_SLOW, f"the request head did not arrive within {HEAD_TIMEOUT_S:g} s"))
        else:
            self.transport.close()

    def _cancel_timeout(self) -> None:
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
            self._timeout_handle = None

    def on_response_complete(self) -> None:
        self._open_cycles.popleft()
        super().on_response_complete()
        if self._in_head:
            self._unset_keepalive_if_required()  # the next request has started
        elif self._in_body and not self.transport.is_closing():
            self._cancel_timeout()
            self._timeout_handle = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._slow_client_guard.watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._slow_client_guard.stop()

    def timeout_keep_alive_handler(self) -> None:
        if not self.transport.get_write_buffer_size():
            super().timeout_keep_alive_handler()
            return
        self._slow_client_guard.watch()  # the end of a response, for which close() would wait forever
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _stop_parser(self, problem: Problem) -> None:
        self._refusal = problem
        raise RequestHeadError

    def _refuse(self, problem: Problem) -> None:
        """Respond and close. If an earlier request still waits for its response, this one gets none: it could be taken for that one."""
        self._refusal = problem
        self._cancel_timeout()
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False
                return
            if self.pipeline or cycle.response_started:
                self.transport.close()
                return
            cycle.disconnected = True  # the response to half a body is dropped
            cycle.message_event.set()
        content = problem.document(uuid.uuid4().hex)
        status = problem.kind.status
        first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        head = f"{first}content-type: {MEDIA_TYPE}\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + content)
        self.transport.write_eof()
        self._timeout_handle = self.loop.call_later(LINGER_TIMEOUT_S, self.transport.abort)

    def _discard_refused_body(self, data: bytes) -> None:
        self._discarded_bytes += len(data)
        if self._discarded_bytes > MAX_LINGER_BYTES:
            self.transport.abort()


def protocol_with_limits(limits: ConnectionLimiter) -> type[BoundedProtocol]:
    """Return the protocol class for all connections of one gateway."""
    return type("Protocol", (BoundedProtocol,), {"limits": limits})


def _too_large() -> Problem:
    return Problem(ProblemKind.HEADERS_TOO_LARGE, f"the request's line and headers are longer than {MAX_HEAD_BYTES} bytes")


def check_coding(codings: Sequence[bytes], version: str) -> None:
    """Check the values of Transfer-Encoding (RFC 9112, 6.1). Raises Problem if a proxy could see the end of the body elsewhere."""
    if version == "1.0":
        raise Problem(ProblemKind.INVALID_REQUEST, "HTTP/1.0 has no Transfer-Encoding: send Content-Length", "Transfer-Encoding")
    names = b",".join(codings).lower()
    if names.strip(b" \t") == b"chunked":
        return
    if {name.strip(b" \t") for name in names.split(b",")} <= {b"chunked", b""}:
        raise Problem(ProblemKind.INVALID_REQUEST, "send `chunked` once", "Transfer-Encoding")
    raise Problem(ProblemKind.NOT_SUPPORTED, "only `chunked` is supported", "Transfer-Encoding")


def check_host(hosts: Sequence[bytes], version: str) -> None:
    """Check the values of Host (RFC 9112, 3.2). Raises Problem."""
    if len(hosts) > 1 or (not hosts and version != "1.0"):
        raise Problem(ProblemKind.INVALID_REQUEST, f"{len(hosts)} Host headers: an HTTP/1.1 request has one", "Host")
    if hosts and not _is_host(hosts[0]):
        raise Problem(ProblemKind.INVALID_REQUEST, "neither a host nor host:port", "Host")


def split_absolute(url: bytes) -> tuple[bytes, bytes]:
    """Return the host, and the path with its query, of a request target such as `http://host/path`. Raises Problem."""
    parts = _ABSOLUTE.fullmatch(url)
    if parts is None or not _is_host(parts["authority"]):
        raise Problem(ProblemKind.INVALID_REQUEST, "the request target is neither a path nor http://host/path")
    path = parts["path"]
    return parts["authority"], path if path.startswith(b"/") else b"/" + path


@lru_cache(maxsize=64)  # clients send the same few
def _is_host(text: bytes) -> bool:
    parts = _HOST.fullmatch(text)
    if parts is None or int(parts["port"] or 0) > 0xFFFF:
        return False
    if parts["ipv6"] is not None:
        try:
            socket.inet_pton(socket.AF_INET6, parts["ipv6"].decode())
        except OSError:
            return False
    return True
