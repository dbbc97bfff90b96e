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
SILENCE_S = 15.0
"""After so long without an event a comment is sent, so that proxies keep the connection."""
HEADERS = [
    (b"content-type", MEDIA_TYPE.encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events
]
COMMENT = b": waiting\n\n"
END = b"\n\n"


def encoded(number: int, name: str, data: bytes) -> list[bytes]:
    """An event, in parts: what is large may be others' too and is not copied. `data`: JSON, which has no line ends."""
    head = b"id: %d\nevent: %s\ndata: " % (number, name.encode())
    return [head + data + END] if len(data) <= CHUNK_BYTES else [head, data, END]


class EventStream:
    """`async with aclosing(EventStream(send, count)) as stream:` the head of the response goes out with the first event, or with `start`.

    What is put is sent by a task of its own. A reader who is slow gets only the latest of the previews that wait for him.
    """

    def __init__(self, send: Send, count: Callable[[str], object]) -> None:
        """count: called with the name of each event that was sent."""
        self._send = send
        self._count = count
        self._waiting: deque[tuple[int, str, bytes]] = deque()
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._ended = False
        self.last = 0
        """Number of the last event that was put."""

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

    def put(self, name: str, data: bytes, number: int | None = None) -> None:
        """Events are counted from 1 unless a number says otherwise."""
        self.last = self.last + 1 if number is None else number
        if name == "preview":
            self._waiting = deque(event for event in self._waiting if event[1] != "preview")
        self._waiting.append((self.last, name, data))
        self._wake.set()
        self.start()

    async def fail(self, problem: Problem, request_id: str) -> None:
        """The last event, unless there has been one or nothing was sent yet: then the problem is an ordinary response."""
        if self.started and not self._ended:
            self.put("failed", problem.document(request_id))
            await self.end()

    async def end(self) -> None:
        """Returns when everything has been handed to the connection."""
        self._ended = True
        self.start()
        self._wake.set()
        assert self._writer is not None
        await self._writer

    async def _write(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        while True:
            while self._waiting:
                number, name, data = self._waiting.popleft()
                for part in encoded(number, name, data):
                    await self._body(part)
                self._count(name)
            if self._ended:
                break
            self._wake.clear()
            try:
                async with asyncio.timeout(SILENCE_S):
                    await self._wake.wait()
            except TimeoutError:
                await self._body(COMMENT)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _body(self, content: bytes) -> None:
        await self._send({"type": "http.response.body", "body": content, "more_body": True})
