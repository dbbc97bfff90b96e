"""Errors as clients see them: RFC 9457 problem documents."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec
from starlette.responses import Response
from structlog.contextvars import get_contextvars

MEDIA_TYPE = "application/problem+json"


class ProblemKind(Enum):
    """A kind of problem: its name in `type`, its status and its title."""

    INVALID_BODY = "invalid-body", 400, "The body cannot be read"
    INVALID_REQUEST = "invalid-request", 400, "Not an HTTP request that can be read"
    UNAUTHORIZED = "unauthorized", 401, "An API key is needed"
    FORBIDDEN = "forbidden", 403, "The API key does not allow this"
    MODEL_CONTROL = "model-control", 403, "Models may not be loaded or unloaded"
    UNKNOWN_MODEL = "unknown-model", 404, "Unknown model"
    NOT_FOUND = "not-found", 404, "No such resource"
    METHOD_NOT_ALLOWED = "method-not-allowed", 405, "Method not allowed"
    NOT_ACCEPTABLE = "not-acceptable", 406, "No such media type is offered"
    TOO_SLOW = "too-slow", 408, "The request arrives too slowly"
    JOB_NOT_DONE = "job-not-done", 409, "The job has not ended"
    JOB_CANCELLED = "job-cancelled", 410, "The job was cancelled"
    JOB_LOST = "job-lost", 410, "The job was lost because Redis lost its data"
    TOO_LARGE = "too-large", 413, "Too large"
    NOT_AN_IMAGE = "not-an-image", 415, "Unsupported image format"
    NOT_A_VIDEO = "not-a-video", 415, "Unsupported video format"
    NOT_A_SOUND = "not-a-sound", 415, "Unsupported sound format"
    UNSUPPORTED_ENCODING = "unsupported-encoding", 415, "Content encoding not supported"
    INVALID_RANGE = "invalid-range", 416, "No such range of the file"
    WRONG_CELL = "wrong-cell", 421, "Another cell has this"
    CORRUPT_IMAGE = "corrupt-image", 422, "Corrupt image"
    CORRUPT_VIDEO = "corrupt-video", 422, "Corrupt video"
    CORRUPT_SOUND = "corrupt-sound", 422, "Corrupt sound"
    NO_VIDEO = "no-video", 422, "The file has no video"
    NO_SOUND = "no-sound", 422, "The file has no sound"
    UNUSABLE_INPUT = "unusable-input", 422, "The input cannot be used"
    FETCH_FAILED = "fetch-failed", 422, "The URL could not be fetched"
    INVALID_OPTION = "invalid-option", 422, "Invalid option"
    QUEUE_FULL = "queue-full", 429, "Too many requests are waiting"
    CLIENT_QUOTA = "client-share", 429, "This client has too much work in progress"
    KEY_QUOTA = "key-share", 429, "This API key has too much work in progress"
    RESULTS_FULL = "results-full", 429, "Result storage is full"
    TOO_MANY_STREAMS = "too-many-readers", 429, "Too many open event streams"
    HEADERS_TOO_LARGE = "headers-too-large", 431, "The request's head is too large"
    WORKER_CRASHED = "worker-crashed", 500, "The worker crashed on this input"
    MODEL_ERROR = "model-error", 500, "The model failed on this input"
    INTERNAL = "internal", 500, "Internal error"
    NOT_SUPPORTED = "not-offered", 501, "Not supported"
    DRAINING = "draining", 503, "The gateway is shutting down"
    REDIS_UNAVAILABLE = "redis-away", 503, "The queue cannot be reached"
    NO_WORKER = "no-worker", 503, "No worker is ready"
    BUNDLE_UNAVAILABLE = "bundle-unavailable", 503, "The bundle cannot be served"
    DEADLINE = "deadline", 504, "The deadline has passed"

    def __init__(self, slug: str, status: int, title: str) -> None:
        self.slug = slug
        self.status = status
        self.title = title


class ProblemDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error (RFC 9457). `field` is the option or the image that it is about: `top_k`, `image`, `image[3]`."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    field: str | None = None
    trace_id: str | None = None


MAX_DETAIL = 1024
"""Maximum size of a detail in bytes; it may repeat what a client sent."""


@dataclass
class Problem(Exception):
    """Ends a request with a problem document. `retry_after`: whole seconds. `detail` is cut after MAX_DETAIL bytes."""

    kind: ProblemKind
    detail: str
    field: str | None = None
    retry_after: int | None = None

    def __post_init__(self) -> None:
        if len(self.detail) > MAX_DETAIL // 4:  # else it has no more bytes than allowed
            written = self.detail.encode(errors="replace")
            if len(written) > MAX_DETAIL:
                self.detail = f"{written[:MAX_DETAIL].decode(errors='ignore')}…"

    def __str__(self) -> str:
        return f"{self.kind.slug}: {self.detail}"

    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.kind is ProblemKind.UNAUTHORIZED:
            headers["WWW-Authenticate"] = 'Bearer realm="opsin"'
        if self.kind is ProblemKind.TOO_SLOW:
            headers["Connection"] = "close"  # the rest of the body would take as long
        return headers

    def as_struct(self, request_id: str, trace_id: str | None) -> ProblemDocument:
        kind = self.kind
        return ProblemDocument(f"urn:opsin:{kind.slug}", kind.title, kind.status, self.detail, request_id, self.field, trace_id)

    def document(self, request_id: str) -> bytes:
        """Encode the answer to the request that is being handled."""
        return msgspec.json.encode(self.as_struct(request_id, get_contextvars().get("trace_id")))

    def to_response(self, request_id: str) -> Response:
        return Response(self.document(request_id), self.kind.status, self.headers(), MEDIA_TYPE)
