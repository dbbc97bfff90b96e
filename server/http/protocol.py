"""uvicorn's HTTP protocol with bounds on heads: their size, their number, and how slowly they may come.

Left alone, uvicorn keeps whatever head a client sends for as long as it likes. All uses of its private parts are here. The bounds on
bodies are those of `middleware`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from server.http.connection_limits import ConnectionLimiter, SlowClientGuard
from server.http.heads import check_coding, check_host, split_absolute
from server.http.middleware import BODY_COMPLETE
from server.http.problems import MEDIA_TYPE, Problem, ProblemKind

HEAD_BYTES = 64 * 1024
"""Limit of request line and headers; also of what comes between two bytes of a body, and of trailers."""
HEAD_SECONDS = 10.0
HEADERS = 100
VERSIONS = ("1.1", "1.0")
PIPELINED = 32
"""Requests that may wait behind the one that is being answered."""
LINGER_BYTES = 1024 * 1024
LINGER_SECONDS = 2.0
"""So much is still read of a refused request that its sender finds the refusal rather than a reset connection."""


@dataclass(eq=False, slots=True)
class HeadWriter:
    """A connection's transport for one response. The head waits until the end of this turn of the loop and leaves with what follows it: a
    packet, and a waking client, fewer for each answer."""

    _transport: asyncio.Transport
    _loop: asyncio.AbstractEventLoop
    _held: bytes = b""
    _written: bool = False

    def write(self, data: bytes) -> None:
        if self._written:
            self._transport.write(self._held + data if self._held else data)
            self._held = b""
        else:
            self._written = True
            self._held = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)


class HeadRefused(Exception):
    """Ends the parser in the middle of a request."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    limits: ConnectionLimiter

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._unproductive = 0
        """Bytes since the last byte of a body or the last end of a request."""
        self._in_head = self._in_body = False
        self._unanswered: deque[RequestResponseCycle] = deque()
        """Requests whose answers have not ended, the oldest first."""
        self._refusal: Problem | None = None
        self._lingered = 0
        self._late: asyncio.TimerHandle | None = None
        """Runs while the client has to send: the rest of a head, or of a request that is answered already."""
        self._reader: SlowClientGuard

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._reader = SlowClientGuard(transport, self.loop)
        if not self.limits.admit(transport):
            transport.abort()
            return
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self.limits.closed(self.transport)
        self._stop_late()
        self._reader.stop()
        for cycle in self._unanswered:  # uvicorn tells the latest alone, which may wait behind the one that runs
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    @property
    def waits_for_client(self) -> bool:
        """No request of it has been read to its end and waits for its answer."""
        if self.transport.is_closing():
            return False
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete or self.cycle.more_body)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            self._linger(data)
            return
        self._unset_keepalive_if_required()
        self._unproductive += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or Problem(ProblemKind.INVALID_REQUEST, "this is no request of HTTP/1.1"))
            return
        if self._unproductive > HEAD_BYTES:
            self._refuse(_too_large())
        elif self._in_head or (self._unproductive and not self._in_body):
            self._late = self._late or self.loop.call_later(HEAD_SECONDS, self._head_is_late)
        elif not self._in_body and self.waits_for_client and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._feed(self._without_upgrade() + data[upgrade.args[0] :])

    def _without_upgrade(self) -> bytes:
        """The head once more, for a parser that does not take the body for a protocol that is not spoken here."""
        first = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        kept = [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        with suppress(AttributeError):  # httptools < 0.6.3
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return b"".join([first, *kept, b"\r\n"])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        if self.parser.get_method() == b"CONNECT":
            self._stop_parser(Problem(ProblemKind.INVALID_REQUEST, "this is no proxy"))
        if self.parser.should_upgrade():
            return  # it comes again, without
        if len(self.headers) > HEADERS:
            self._stop_parser(Problem(ProblemKind.HEADERS_TOO_LARGE, f"more than {HEADERS} headers"))
        try:
            self._check_head()
        except Problem as problem:
            self._stop_parser(problem)
        if len(self.pipeline) >= PIPELINED:
            self._stop_parser(Problem(ProblemKind.INVALID_REQUEST, f"more than {PIPELINED} requests wait on this connection"))
        super().on_headers_complete()
        self.headers = []  # trailers end there: nobody asks for them, and they must not pass for headers
        self._unanswered.append(self.cycle)
        self.cycle.transport = HeadWriter(self.transport, self.loop)  # type: ignore[assignment]  # all that it asks of one
        self._in_head, self._in_body = False, True
        self._unproductive = 0
        self._stop_late()

    def _check_head(self) -> None:
        """Raises Problem."""
        version = self.parser.get_http_version()
        if version not in VERSIONS:
            raise Problem(ProblemKind.INVALID_REQUEST, f"HTTP/{version}: only HTTP/1.1 and HTTP/1.0 are spoken here")
        size = len(self.url)
        hosts, codings = [], []
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts.append(value)
            elif name == b"transfer-encoding":
                codings.append(value)
        if size > HEAD_BYTES:
            raise _too_large()
        check_host(hosts, version)
        if codings:
            check_coding(codings, version)
        if self.url[:1] != b"/" and self.url != b"*":
            host, self.url = split_absolute(self.url)
            self.headers[:] = [header for header in self.headers if header[0] != b"host"] + [(b"host", host)]  # RFC 9112, 3.2.2

    def on_body(self, body: bytes) -> None:
        self._unproductive = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._unproductive, self._in_body = 0, False
        self.scope["state"][BODY_COMPLETE] = True
        super().on_message_complete()
        self._stop_late()

    def _head_is_late(self) -> None:
        self._late = None
        if self.flow.read_paused:  # by us
            self._late = self.loop.call_later(HEAD_SECONDS, self._head_is_late)
        elif self._in_head or self._unproductive:
            self._refuse(Problem(ProblemKind.TOO_SLOW, f"the head of the request has not arrived within {HEAD_SECONDS:g} s"))
        else:
            self.transport.close()

    def _stop_late(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def on_response_complete(self) -> None:
        self._unanswered.popleft()
        super().on_response_complete()
        if self._in_head:
            self._unset_keepalive_if_required()  # the next request has begun
        elif self._in_body and not self.transport.is_closing():
            self._stop_late()
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader.stop()

    def timeout_keep_alive_handler(self) -> None:
        if not self.transport.get_write_buffer_size():
            super().timeout_keep_alive_handler()
            return
        self._reader.watch()  # the end of an answer, which close() would wait for without end
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _stop_parser(self, problem: Problem) -> None:
        self._refusal = problem
        raise HeadRefused

    def _refuse(self, problem: Problem) -> None:
        """Answer and close. An earlier request gets its own answer first, and this one none: it could be taken for that."""
        self._refusal = problem
        self._stop_late()
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
            cycle.disconnected = True  # what the app makes of half a body goes nowhere
            cycle.message_event.set()
        content = problem.document(uuid.uuid4().hex)
        status = problem.kind.status
        first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        head = f"{first}content-type: {MEDIA_TYPE}\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + content)
        self.transport.write_eof()
        self._late = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _linger(self, data: bytes) -> None:
        self._lingered += len(data)
        if self._lingered > LINGER_BYTES:
            self.transport.abort()


def bounded(limits: ConnectionLimiter) -> type[BoundedProtocol]:
    """The protocol for all connections of one gateway."""
    return type("Protocol", (BoundedProtocol,), {"limits": limits})


def _too_large() -> Problem:
    return Problem(ProblemKind.HEADERS_TOO_LARGE, f"the request's line and headers are longer than {HEAD_BYTES} bytes")
