"""Answers that their clients have not read: how much of them, and who is given up for it."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios

READ_BYTES = 10 * 1024
READ_SECONDS = 10.0
"""A client that lets its answer lie must read READ_BYTES in READ_SECONDS."""


class Reader:
    """The client of one connection. While it is watched and something waits for it, its connection is aborted if it does not read."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._look: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Until nothing waits any more, or `stop`. It may be said again."""
        if self._look is None:
            self._look = self._loop.call_later(READ_SECONDS, self._check, unread_bytes(self._transport))

    def stop(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _check(self, before: int) -> None:
        self._look = None
        if not self._transport.get_write_buffer_size():
            return
        if unread_bytes(self._transport) > before - READ_BYTES:
            self._transport.abort()
        else:
            self.watch()


def unread_bytes(transport: asyncio.Transport) -> int:
    """What waits in the transport and in the system's buffer, which holds megabytes and takes more only when a third of it is free."""
    return transport.get_write_buffer_size() + unacknowledged(transport.get_extra_info("socket"))


def unacknowledged(sender: socket.socket | None) -> int:
    """Bytes that the other side's system has not taken; 0 where ours does not tell."""
    try:
        return 0 if sender is None else int.from_bytes(fcntl.ioctl(sender.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0
