"""Server-sent events as the body of a response (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from starlette.types import Send

from server.http.problems import Problem

MEDIA_TYPE = "text/event-stream"
CHUNK_BYTES = 256 * 1024
"""Size of the chunks in which large bodies are sent."""
HEARTBEAT_INTERVAL_S = 15.0
"""Time without an event after which a comment is sent, so that proxies keep the connection open."""
HEADERS = [
    (b"content-type", MEDIA_TYPE.encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would buffer events
]
HEARTBEAT = b": waiting\n\n"
END = b"\n\n"


def encode_event(number: int, name: str, data: bytes) -> list[bytes]:
    """Return an event in parts: large data, which several streams may share, is not copied. data: JSON without line ends."""
    head = b"id: %d\nevent: %s\ndata: " % (number, name.encode())
    return [head + data + END] if len(data) <= CHUNK_BYTES else [head, data, END]


class EventStream:
    """A response of events, for `async with aclosing(…)`. Its head is sent with the first event, or by `start`; a task sends the events.

    A slow client gets only the latest of the previews that wait for it."""

    def __init__(self, send: Send, count: Callable[[str], object]) -> None:
        """count: called with the name of each event that was sent."""
        self._send = send
        self._count = count
        self._waiting: deque[tuple[int, str, bytes]] = deque()
        self._has_events = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._ended = False
        self.last = 0

    async def aclose(self) -> None:
        """Send nothing more."""
        if self._writer is not None:
            self._writer.cancel()

    @property
    def started(self) -> bool:
        return self._writer is not None

    def start(self) -> None:
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    def send_event(self, name: str, data: bytes, number: int | None = None) -> None:
        """Send an event. Events are numbered from 1 unless `number` is given."""
        self.last = self.last + 1 if number is None else number
        if name == "preview":
            self._waiting = deque(event for event in self._waiting if event[1] != "preview")
        self._waiting.append((self.last, name, data))
        self._has_events.set()
        self.start()

    async def fail(self, problem: Problem, request_id: str) -> None:
        """End with the event `failed`, unless the stream has ended. Before the first event it does nothing: the problem is the response."""
        if self.started and not self._ended:
            self.send_event("failed", problem.document(request_id))
            await self.end()

    async def end(self) -> None:
        """End the stream. Return when everything has been handed to the connection."""
        self._ended = True
        self.start()
        self._has_events.set()
        assert self._writer is not None
        await self._writer

    async def _write(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        while True:
            while self._waiting:
                number, name, data = self._waiting.popleft()
                for part in encode_event(number, name, data):
                    await self._send_chunk(part)
                self._count(name)
            if self._ended:
                break
            self._has_events.clear()
            try:
                async with asyncio.timeout(HEARTBEAT_INTERVAL_S):
                    await self._has_events.wait()
            except TimeoutError:
                await self._send_chunk(HEARTBEAT)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_chunk(self, content: bytes) -> None:
        await self._send({"type": "http.response.body", "body": content, "more_body": True})
