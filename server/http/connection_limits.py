"""Bounds on connections: their number by client, and how slowly a client may read its answers."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from collections.abc import Sequence

from server.concurrency.client_bound import ClientBound
from server.http.client_identity import ClientAddresses, subscriber

READ_BYTES = 10 * 1024
READ_SECONDS = 10.0
"""A client that lets its answer lie must read READ_BYTES in READ_SECONDS."""


class ConnectionLimiter:
    """At most `total` connections by client. Those of trusted proxies are anonymous: what comes through them is counted by request."""

    def __init__(self, total: int, trusted_proxies: Sequence[str]) -> None:
        self._addresses = ClientAddresses(trusted_proxies)
        self._held = ClientBound(total, total / 4)
        self._client_of: dict[asyncio.Transport, str] = {}
        """Open connections, the newest last."""

    def admit(self, connection: asyncio.Transport) -> bool:
        """Return whether it may stay. If all are taken, a client below a quarter of them, or a proxy, gets the newest connection of the
        client that has most, if that is more than a quarter, whatever is requested over it."""
        peer = connection.get_extra_info("peername")  # none over a Unix socket
        client = subscriber(peer[0]) if isinstance(peer, tuple) and not self._addresses.is_proxy(peer[0]) else ""
        has_few = not client or self._held.amount(client) < self._held.each
        if len(self._client_of) >= self._held.total and not (has_few and self._close_one()):
            return False
        self._held.take(client, 1)
        self._client_of[connection] = client
        return True

    def closed(self, connection: asyncio.Transport) -> None:
        """Idempotent; does nothing for one that was never admitted."""
        client = self._client_of.pop(connection, None)
        if client is not None:
            self._held.give(client, 1)

    def _close_one(self) -> bool:
        greediest, count = self._held.greediest()
        if count <= self._held.each:
            return False
        newest = next(connection for connection, client in reversed(self._client_of.items()) if client == greediest)
        self.closed(newest)  # at once: the next one that comes must not count it
        newest.abort()
        return True


class SlowClientGuard:
    """The client of one connection. While it is watched and something waits for it, its connection is aborted if it does not read."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._look: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Until nothing waits any more, or `stop`. It may be said again."""
        if self._look is None:
            self._look = self._loop.call_later(READ_SECONDS, self._check, self._unread_bytes())

    def stop(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _check(self, before: int) -> None:
        self._look = None
        if not self._transport.get_write_buffer_size():
            return
        if self._unread_bytes() > before - READ_BYTES:
            self._transport.abort()
        else:
            self.watch()

    def _unread_bytes(self) -> int:
        """Bytes in the transport and in the system's buffer, which holds megabytes and takes more only when a third of it is free."""
        return self._transport.get_write_buffer_size() + unacknowledged(self._transport.get_extra_info("socket"))


def unacknowledged(sender: socket.socket | None) -> int:
    """Bytes that the other side's system has not taken; 0 where ours does not tell."""
    try:
        return 0 if sender is None else int.from_bytes(fcntl.ioctl(sender.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0
