"""The pages `/` and `/status` and the files that they load. They use the public API alone."""

from __future__ import annotations

from typing import Any

from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from server import playground

CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
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


class _Files(StaticFiles):
    """Static files with the headers of the pages."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


def _page(path: str, name: str) -> Route:
    async def page(_request: object) -> Response:
        return FileResponse(playground.STATIC / name, headers=HEADERS)

    return Route(path, page, include_in_schema=False)


ROUTES: list[BaseRoute] = [
    _page("/", "index.html"),
    _page("/status", "status.html"),
    Mount("/static/samples", _Files(directory=playground.SAMPLES)),
    Mount("/static", _Files(directory=playground.STATIC)),
]
