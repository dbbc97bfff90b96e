"""The protocol's error shape: `{"error": "…"}` with the content type `application/json` and no parameters.

KServe's client shows the message only if the content type is exactly that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from server.gateway.inference.error_mapping import respond_or_refuse
from server.http.problems import Problem, ProblemKind

STATUS = {
    ProblemKind.NOT_AN_IMAGE: 400,
    ProblemKind.CORRUPT_IMAGE: 400,
    ProblemKind.INVALID_OPTION: 400,
    ProblemKind.UNSUPPORTED_ENCODING: 501,
}
"""Kinds whose status in the protocol differs from that of /v1."""


def invalid(message: str) -> Problem:
    return Problem(ProblemKind.INVALID_BODY, message)


def status(kind: ProblemKind) -> int:
    return STATUS.get(kind, kind.status)


def to_response(problem: Problem) -> Response:
    message = problem.detail if problem.field is None else f"{problem.field}: {problem.detail}"
    headers = problem.headers()
    if problem.kind is ProblemKind.UNSUPPORTED_ENCODING:
        headers["Accept-Encoding"] = "gzip, deflate"
    return json_response({"error": message}, status(problem.kind), headers)


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, {"Content-Type": "application/json", **(headers or {})})


class OpenInferenceRoute(APIRoute):
    """A route whose failures leave in the protocol's error shape."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await respond_or_refuse(request, handler(request), to_response)

        return answer
