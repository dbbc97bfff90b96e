"""Events as the body of a response: what is sent while nothing happens, and to whom who reads slowly."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from starlette.types import Message

from server.http import sse
from tests.support.waiting import eventually_async


async def test_silence_is_broken_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_INTERVAL_S", 0.01)
    sent: list[Message] = []
    names: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async with aclosing(sse.EventStream(send, names.append)) as stream:
        stream.start()
        await eventually_async(lambda: sum(message.get("body") == sse.HEARTBEAT for message in sent) >= 2, "two comments are sent")
        stream.send_event("done", b"{}")
        await stream.end()
    assert sent[-2]["body"] == b"id: 1\nevent: done\ndata: {}\n\n"
    assert names == ["done"]


async def test_a_slow_reader_gets_the_latest_preview_only() -> None:
    sent: list[bytes] = []
    reads = asyncio.Event()

    async def send(message: Message) -> None:
        await reads.wait()
        sent.append(message.get("body", b""))

    async with aclosing(sse.EventStream(send, str)) as stream:
        for step in range(3):
            stream.send_event("progress", b"%d" % step)
            stream.send_event("preview", b"%d" % step)
        reads.set()
        await stream.end()
    lines = [line for line in b"".join(sent).decode().split("\n") if line.startswith(("id", "event"))]
    assert lines == ["id: 1", "event: progress", "id: 3", "event: progress", "id: 5", "event: progress", "id: 6", "event: preview"]
