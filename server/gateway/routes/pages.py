"""Pages: the playground at `/`, `/status` and their files, which use only the public API, and Swagger UI at `/docs`.

Each has a content security policy that allows only its own scripts.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import playground
from server.http.problems import Problem, ProblemKind

SWAGGER = "/docs/static"
INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
COMPRESSION = 6
RANGE_REFUSED = {400: "not a range", 416: "beyond the end of the file"}
"""Status for a `Range` that is refused → the reason."""

router = APIRouter()


def _policy(*sources: str) -> str:
    return "; ".join(("default-src 'none'", *sources, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"))


HEADERS = {
    "Content-Security-Policy": _policy(
        "script-src 'self'", "style-src 'self'", "img-src 'self' blob: data:", "media-src 'self' blob:", "connect-src 'self' blob:"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # file names have no version: browsers ask whether a file has changed
}


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    static = SWAGGER.removeprefix("/")  # relative to the page, which a proxy may serve under a prefix
    page = get_swagger_ui_html(
        openapi_url=request.app.openapi_url.removeprefix("/"),
        title="Opsin: the API",
        swagger_js_url=f"{static}/swagger-ui-bundle.js",
        swagger_css_url=f"{static}/swagger-ui.css",
        swagger_favicon_url=f"{static}/swagger-ui.png",
        swagger_ui_parameters={"defaultModelsExpandDepth": 0},
    )
    digests = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in INLINE_SCRIPT.findall(bytes(page.body)))
    scripts = " ".join(("script-src 'self'", *(f"'sha256-{digest}'" for digest in digests)))
    # Swagger UI draws its icons from data URLs and sets styles of elements
    page.headers["Content-Security-Policy"] = _policy(
        scripts, "style-src 'self' 'unsafe-inline'", "img-src 'self' data:", "connect-src 'self'"
    )
    page.headers["X-Content-Type-Options"] = "nosniff"
    return page


class _Files(StaticFiles):
    """Static files with the headers of the pages. An invalid range is refused with a problem document."""

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


class _CompressedFiles:
    """Static files that are compressed if the client accepts that; ranges are not."""

    def __init__(self, files: ASGIApp) -> None:
        self._files = files
        self._compressed = GZipMiddleware(files, compresslevel=COMPRESSION)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_range = any(name == b"range" for name, _ in scope["headers"])
        await (self._files if has_range else self._compressed)(scope, receive, send)


def _range_problem(message: Message) -> Problem:
    kind = ProblemKind.INVALID_RANGE if message["status"] == 416 else ProblemKind.INVALID_REQUEST
    return Problem(kind, f"{RANGE_REFUSED[message['status']]}; use bytes=FIRST-LAST within the file", "Range")


def _page(path: str, name: str) -> Route:
    async def page(_request: object) -> Response:
        return FileResponse(playground.STATIC / name, headers=HEADERS)

    return Route(path, page, include_in_schema=False)


API_FILES = Mount(SWAGGER, _CompressedFiles(_Files(directory=playground.STATIC / "vendor")))
"""Files of `/docs`, which is served without the playground, too."""
ROUTES: list[BaseRoute] = [
    _page("/", "index.html"),
    _page("/status", "status.html"),
    Mount("/static/samples", _Files(directory=playground.SAMPLES)),
    Mount("/static", _CompressedFiles(_Files(directory=playground.STATIC))),
]
