"""The protocol's error shape: `{"error": "…"}` with the content type `application/json` and nothing behind it.

KServe's client shows the message only if the content type is exactly that.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response


class OpenInferenceError(Exception):
    """A request that ends with another status than 200; the message is for the client."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})

    def to_response(self) -> Response:
        return json_response({"error": self.message}, status=self.status, headers=self.headers)


def bad_request(message: str) -> OpenInferenceError:
    return OpenInferenceError(400, message)


def json_response(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, {"content-type": "application/json", **(headers or {})})
