"""A TCP proxy that lets only so many bytes a second through, in each direction, over all its connections."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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
        there, back = await asyncio.open_connection("127.0.0.1", self._target, limit=PIECE)
        await asyncio.gather(self._pump(reader, back, 0), self._pump(there, writer, 1))

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
    """To a port of this machine; yields the port to use instead."""
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
