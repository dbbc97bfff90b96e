"""The middleware of a gateway: large bodies of responses leave in chunks."""

from __future__ import annotations

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.http.middleware import RequestMiddleware
from server.http.sse import CHUNK_BYTES

BODY = bytes(range(256)) * (5 * CHUNK_BYTES // 512)
"""Two pieces and a half."""


async def send_through_middleware(*messages: Message) -> list[Message]:
    """Send these messages as a response; return what the server gets after its start."""
    passed_on: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for message in messages:
            await send(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        passed_on.append(message)

    middleware = RequestMiddleware(
        app,
        (),
        body_bytes=2**20,
        connections=4,
        trusted_proxies=(),
        state={},
        authenticate=None,
        refuse=lambda problem, _scope: problem.to_response(""),
    )
    await middleware({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send)
    return passed_on[1:]


@pytest.mark.parametrize("more_body", [False, True])
async def test_a_large_body_leaves_in_pieces_the_last_of_which_ends_it(more_body: bool) -> None:
    pieces = await send_through_middleware({"type": "http.response.body", "body": BODY, "more_body": more_body})
    assert b"".join(piece["body"] for piece in pieces) == BODY
    assert [len(piece["body"]) for piece in pieces] == [CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES // 2]
    assert [piece["more_body"] for piece in pieces] == [True, True, more_body]


async def test_a_small_body_is_passed_on_as_it_is() -> None:
    message: Message = {"type": "http.response.body", "body": BODY[:CHUNK_BYTES]}
    assert await send_through_middleware(message) == [message]
    assert await send_through_middleware({"type": "http.response.body"}) == [{"type": "http.response.body"}]
