"""Head and body of an answer leave together; a head alone does not wait for its body."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from server.http.protocol import HeadBufferingTransport


class Transport:
    """A connection that keeps what is written to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def writer() -> tuple[HeadBufferingTransport, Transport]:
    transport = Transport()
    return HeadBufferingTransport(cast(Any, transport), asyncio.get_running_loop()), transport


async def test_what_is_written_in_one_turn_is_one_packet() -> None:
    response, transport = writer()
    response.write(b"head ")
    response.write(b"body")
    await asyncio.sleep(0)
    assert transport.written == [b"head body"]


async def test_head_before_its_body_is_sent_at_end_of_turn() -> None:
    response, transport = writer()
    response.write(b"head ")
    await asyncio.sleep(0)
    assert transport.written == [b"head "]
    response.write(b"event ")
    response.write(b"event")
    assert transport.written == [b"head ", b"event ", b"event"]


async def test_closing_leaves_nothing_behind() -> None:
    response, transport = writer()
    response.write(b"head")
    response.close()
    assert transport.written == [b"head"] and transport.closed
