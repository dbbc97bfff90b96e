"""The head of a response leaves together with what follows it: a packet, and a waking client, fewer for each answer."""

from __future__ import annotations

import asyncio


class HeadWriter:
    """A connection's transport, as far as one response needs it. What is written first waits for the end of this turn of the loop."""

    __slots__ = ("_held", "_loop", "_transport", "_written")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self._written = False

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
