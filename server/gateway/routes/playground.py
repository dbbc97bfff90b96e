"""The pages `/` and `/status` and the files that they load. They use the public API alone."""

from __future__ import annotations

from typing import Any

from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import playground
from server.http.problems import Kind, Problem

CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # the files have no version in their names: browsers ask whether they have changed
}


COMPRESSION = 6
RANGE_REFUSED = {400: "not a range", 416: "beyond the end of the file"}
"""Status of a file's answer to a `Range` that it cannot give → why."""


class _Files(StaticFiles):
    """Static files with the headers of the pages. A range that cannot be read is refused like anything else."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = False

        async def answer(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in RANGE_REFUSED:
                refused = True
                response = _range_problem(message).to_response(scope["state"]["request_id"])
                response.raw_headers += [header for header in message["headers"] if header[0] == b"content-range"]
                await response(scope, receive, send)
            elif not refused:
                await send(message)

        await super().__call__(scope, receive, answer)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


class _Compressed:
    """Text that is sent compressed to whoever accepts it; ranges of it are sent as they are."""

    def __init__(self, files: ASGIApp) -> None:
        self._files = files
        self._compressed = GZipMiddleware(files, compresslevel=COMPRESSION)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks_for_range = any(name == b"range" for name, _ in scope["headers"])
        await (self._files if asks_for_range else self._compressed)(scope, receive, send)


def _range_problem(message: Message) -> Problem:
    kind = Kind.INVALID_RANGE if message["status"] == 416 else Kind.INVALID_REQUEST
    return Problem(kind, f"{RANGE_REFUSED[message['status']]}; use bytes=FIRST-LAST within the file", "Range")


def _page(path: str, name: str) -> Route:
    async def page(_request: object) -> Response:
        return FileResponse(playground.STATIC / name, headers=HEADERS)

    return Route(path, page, include_in_schema=False)


ROUTES: list[BaseRoute] = [
    _page("/", "index.html"),
    _page("/status", "status.html"),
    Mount("/static/samples", _Files(directory=playground.SAMPLES)),
    Mount("/static", _Compressed(_Files(directory=playground.STATIC))),
]
