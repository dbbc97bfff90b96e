"""Limits on connections: their number by client, and how slowly a client may read its responses."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from collections.abc import Sequence

from server.concurrency import ClientBound
from server.http.requests import ClientResolver, client_network

MIN_READ_BYTES = 10 * 1024
READ_WINDOW_S = 10.0
"""Time in seconds in which a client with an unread response must read MIN_READ_BYTES."""


class ConnectionLimiter:
    """A limit on connections by client. Those of trusted proxies are anonymous: requests through them are counted instead."""

    def __init__(self, total: int, trusted_proxies: Sequence[str]) -> None:
        self._addresses = ClientResolver(trusted_proxies)
        self._clients = ClientBound(total, total / 4)
        self._client_of: dict[asyncio.Transport, str] = {}
        """Open connections, the newest last."""
        self.are_leaving = False
        """Whether each connection gets at most one more response, since this gateway ends soon."""

    def admit(self, connection: asyncio.Transport) -> bool:
        """Return whether a connection may stay. If all are in use, a client with less than a quarter of them, or a proxy, replaces the
        newest connection of the client that has most, if that is more than a quarter, even in the middle of a request."""
        peer = connection.get_extra_info("peername")  # none over a Unix socket
        client = client_network(peer[0]) if isinstance(peer, tuple) and not self._addresses.is_proxy(peer[0]) else ""
        has_few = not client or self._clients.amount(client) < self._clients.each
        if len(self._client_of) >= self._clients.total and not (has_few and self._evict_connection()):
            return False
        self._clients.take(client, 1)
        self._client_of[connection] = client
        return True

    def release(self, connection: asyncio.Transport) -> None:
        """Forget a closed connection. Does nothing if it was never admitted. Idempotent."""
        client = self._client_of.pop(connection, None)
        if client is not None:
            self._clients.give(client, 1)

    def _evict_connection(self) -> bool:
        greediest, count = self._clients.greediest()
        if count <= self._clients.each:
            return False
        newest = next(connection for connection, client in reversed(self._client_of.items()) if client == greediest)
        self.release(newest)  # now: the next connection must not count it
        newest.abort()
        return True


class SlowClientGuard:
    """A guard that, while it watches, aborts a connection whose client does not read what waits for it."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._check_handle: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Start to watch, until nothing waits or `stop` is called. Idempotent."""
        if self._check_handle is None:
            self._check_handle = self._loop.call_later(READ_WINDOW_S, self._check, self._unread_bytes())

    def stop(self) -> None:
        if self._check_handle is not None:
            self._check_handle.cancel()
            self._check_handle = None

    def _check(self, before: int) -> None:
        self._check_handle = None
        if not self._transport.get_write_buffer_size():
            return
        if self._unread_bytes() > before - MIN_READ_BYTES:
            self._transport.abort()
        else:
            self.watch()

    def _unread_bytes(self) -> int:
        """Return the bytes in the transport and in the system's buffer, which holds megabytes and accepts more once a third is free."""
        return self._transport.get_write_buffer_size() + count_unacknowledged(self._transport.get_extra_info("socket"))


def count_unacknowledged(sender: socket.socket | None) -> int:
    """Return the bytes that the other system has not acknowledged; 0 if this system does not report them."""
    try:
        return 0 if sender is None else int.from_bytes(fcntl.ioctl(sender.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0
