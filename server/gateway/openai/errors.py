"""OpenAI's error shape: `{"error": {"message", "type", "param", "code"}}`, with the status codes of `/v1`."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from server.http.problems import Problem
from server.tasks.base import JSON


class OpenAIError(msgspec.Struct, frozen=True):
    """An error. `type`: `invalid_request_error`, `rate_limit_error` or `server_error`; `param`: the field; `code`: the problem's kind."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorDocument(msgspec.Struct, frozen=True):
    """The body of every error response."""

    error: OpenAIError


def to_document(problem: Problem) -> OpenAIErrorDocument:
    message = problem.detail if problem.field is None else f"{problem.field}: {problem.detail}"
    return OpenAIErrorDocument(OpenAIError(message, _type(problem.kind.status), problem.field, problem.kind.slug))


def to_response(problem: Problem) -> Response:
    return Response(msgspec.json.encode(to_document(problem)), problem.kind.status, problem.headers(), JSON)


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"
