"""The service's address, and one request of the client: how it is sent, when it is retried, and which error its response means."""

from __future__ import annotations

import math
import os
import re
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict, TypeVar

import httpx2

from opsin.errors import DeadlinePassed, Failed, OpsinError, Refused, Unreachable, error_class
from opsin.results import Readiness

T = TypeVar("T")

MAX_TIMEOUT_S = 3600.0
"""Longest deadline that a request without a job announces. Its client may wait longer; for jobs OPSIN_JOB_TIMEOUT is the limit."""
MAX_SOCKET_TIMEOUT_S = 1e9
"""Longest timeout of a socket, also for calls without a limit: larger values overflow the system's clocks."""
ANSWER_MARGIN_S = 2.0
"""Time that the client waits beyond the deadline that it announced, so that the service's own 504 arrives."""

FIRST_BACKOFF_S = 0.5
"""Pause before the first retry if the service sends no Retry-After. It doubles with each retry."""
MAX_RETRY_AFTER_S = 3600.0
"""Upper limit for the Retry-After of a response."""
TRANSPORT_ERRORS = (httpx2.HTTPError, httpx2.InvalidURL)
"""Exceptions of httpx2 for requests without a response. None of them reaches a caller of the client."""
Headers = Mapping[str, str]
DEFAULT_URL = "http://127.0.0.1:8000"
MAX_PORT = 2**16 - 1
CREDENTIALS = re.compile(r"^(https?://)?.*@", re.DOTALL)
"""The start of an address with a user name or password, which messages leave out."""
URL_ESCAPING_HINT = "it cannot be read; in user names and passwords write / as %2F, ? as %3F, # as %23"
"""Message for an address with a password, instead of the reason, which may repeat a part of the password."""
# Below uvicorn's five seconds, so that no request is sent down a connection that the service is just closing.
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=3.0)


class CallOptions(TypedDict, total=False):
    """Options of every call; None is the service's default."""

    priority: Literal["high", "normal", "low"] | None
    timeout: float | None
    """Timeout of this call in seconds, retries included, instead of the client's; of each request if it takes several."""
    request_id: str | None
    """ID of the request in the service's logs."""


@dataclass(frozen=True)
class ApiRequest:
    """One request before it is sent; the deadline is added at each attempt."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    images: tuple[bytes, ...] = ()
    """Encoded images, all in the part `image`."""
    parts: Mapping[str, bytes | Sequence[bytes]] = field(default_factory=dict)
    """Files by the names of their parts, for requests with other parts than `image`."""
    form: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Fields of the form next to the files, or alone: options that may be repeated."""
    json: Mapping[str, Any] | None = None
    """The body, instead of files."""
    timeout: float | None = None
    is_job: bool = False
    """Whether to submit it as a job."""

    def as_job(self) -> ApiRequest:
        """Return the request that submits this one as a job, with an idempotency key, so that no retry makes a second job."""
        headers = {**self.headers, "Prefer": "respond-async", "Idempotency-Key": uuid.uuid4().hex}
        if self.timeout is not None:
            headers["X-Request-Timeout"] = f"{MAX_TIMEOUT_S if self.timeout == math.inf else max(self.timeout, 0.001):.3f}"
        return replace(self, headers=headers, timeout=None, is_job=True)

    def arguments(self, timeout: float) -> dict[str, Any]:
        """Return the arguments of `httpx2.Client.request`. One image alone is the body itself; several are a multipart form."""
        timeout_header = f"{min(max(timeout, 0.001), MAX_TIMEOUT_S):.3f}"
        arguments: dict[str, Any] = {
            "method": self.method,
            "url": self.path,
            "params": dict(self.query),
            "headers": {**self.headers} if self.is_job else {**self.headers, "X-Request-Timeout": timeout_header},
            "timeout": min(timeout, MAX_SOCKET_TIMEOUT_S) + ANSWER_MARGIN_S,
        }
        if self.json is not None:
            arguments["json"] = self.json
        elif self.parts or (self.form and not self.images):
            parts = [(name, [data] if isinstance(data, bytes) else data) for name, data in self.parts.items()]
            files: list[Any] = [(name, (name, data, "application/octet-stream")) for name, contents in parts for data in contents]
            arguments["files"] = files + [(name, (None, text)) for name, texts in self.form.items() for text in texts]
        elif len(self.images) == 1 and not self.form:
            arguments["content"] = self.images[0]
            arguments["headers"]["Content-Type"] = "application/octet-stream"
        elif self.images:
            arguments["files"] = [("image", (f"image{i}", data, "application/octet-stream")) for i, data in enumerate(self.images)]
            arguments["data"] = {name: list(values) for name, values in self.form.items()}
        return arguments


class RetryBudget:
    """The time and the retries that a call has left."""

    def __init__(self, timeout: float, retries: int) -> None:
        if not timeout > 0:  # nor is NaN
            raise ValueError(f"timeout: {timeout:g} s; it must be positive")
        self._ends = time.monotonic() + timeout
        self._retries = retries
        self._pause = FIRST_BACKOFF_S

    def remaining_s(self) -> float:
        return max(self._ends - time.monotonic(), 0.001)

    def pause_before_retry(self, response: httpx2.Response) -> float | None:
        """Return the seconds to wait before the next attempt, None if this response is final."""
        if response.status_code not in (429, 503) or not self._retries or error_from_response(response).is_lasting:
            return None
        requested = retry_after(response)
        pause = self._pause if requested is None else requested
        if pause >= self.remaining_s():
            return None
        self._retries -= 1
        self._pause *= 2
        return pause


def build_request(
    path: str, options: Mapping[str, Any], *, method: str = "POST", accept: str = "application/json", **content: Any
) -> ApiRequest:
    """Return a request with the options of one of the client's methods. content: further fields of `ApiRequest`."""
    query = query_of({name: value for name, value in options.items() if name not in ("timeout", "request_id")})
    headers = {"Accept": accept}
    if request_id := options.get("request_id"):
        headers["X-Request-ID"] = request_id
    return ApiRequest(method, path, query=query, headers=headers, timeout=options.get("timeout"), **content)


def query_of(options: Mapping[str, Any]) -> dict[str, str]:
    """Return options as texts, without those that are None."""
    return {name: option_text(value) for name, value in options.items() if value is not None}


def option_text(value: Any) -> str:
    """Write the value of an option as the service reads it in a URL or a form."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_texts(name: str, texts: Sequence[str]) -> None:
    """Raise ValueError for a text that UTF-8 cannot hold: one with a lone surrogate, as a badly decoded file name has."""
    for index, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}[{index}]: {text!r} holds a lone surrogate, which UTF-8 cannot") from error


def check_names(method: str, options: Iterable[str], table: type[Any]) -> None:
    """Raise TypeError for an option that a method does not have. table: the TypedDict of those that it has."""
    unknown = [name for name in options if name not in table.__annotations__]
    if unknown:
        raise TypeError(f"{method}: no option {unknown[0]!r}; the options are {', '.join(table.__annotations__)}")


def raise_for_problem(response: httpx2.Response) -> httpx2.Response:
    if response.is_success:
        return response
    raise error_from_response(response)


def parse_json_answer(response: httpx2.Response, read: Callable[[Any], T]) -> T:
    """Read an answer's JSON with `read`. Raises Failed for answers that Opsin never gives: another service listens there."""
    return parse_answer(response, lambda answer: read(answer.json()))


def parse_answer(response: httpx2.Response, read: Callable[[httpx2.Response], T]) -> T:
    """Read an answer of any kind with `read`. Raises Failed as `parse_json_answer` does."""
    try:
        return read(response)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, EOFError, OSError, zipfile.BadZipFile) as error:
        kind = response.headers.get("Content-Type", "no type")
        raise Failed(
            f"{response.url}: not an answer of Opsin: {len(response.content)} bytes of {kind} ({type(error).__name__}: {error})"
        ) from error


def error_from_response(response: httpx2.Response) -> OpsinError:
    """Return the error of a response: its problem document, or its bare text if a proxy answered instead of the service."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    document = body if isinstance(body, dict) else {"detail": " ".join(response.text.split())[:200]}
    problem = {name: value for name, value in document.items() if isinstance(value, str)}
    return error_class(response.status_code, has_problem=isinstance(body, dict) and "detail" in body)(
        problem.get("detail") or response.reason_phrase or "no reason given",
        status=response.status_code,
        title=problem.get("title") or response.reason_phrase,
        field=problem.get("field"),
        request_id=problem.get("request_id") or response.headers.get("X-Request-ID"),
        retry_after=retry_after(response),
        type=problem.get("type", ""),
    )


def retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds of Retry-After, None if the response names no number."""
    try:
        seconds = float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
    return None if math.isnan(seconds) else min(max(0.0, seconds), MAX_RETRY_AFTER_S)


def transport_error(error: httpx2.HTTPError | httpx2.InvalidURL, url: str, timeout: float) -> OpsinError:
    """Return the error of a request without a response; `error` is one of `TRANSPORT_ERRORS`."""
    if isinstance(error, httpx2.InvalidURL):
        return Refused(f"{url}: a request with so long an id, name or option cannot be sent ({error})")
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        return DeadlinePassed(f"{url}: no answer within {timeout:.3g} s")
    hint = "; is `opsin serve` running? OPSIN_URL names another address" if isinstance(error, httpx2.ConnectError) else ""
    return Unreachable(f"{url}: no answer ({str(error) or type(error).__name__}){hint}")


def request_headers(headers: Headers | None, api_key: str | None) -> httpx2.Headers:
    """Return the headers of every request. The key is sent in `X-API-Key`, since `Authorization` may be for a proxy; an `X-API-Key` among
    `headers` takes precedence. Raises OpsinError, without repeating it, for a text that cannot be a key."""
    key = os.environ.get("OPSIN_API_KEY", "").strip() if api_key is None else api_key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise OpsinError("api_key (or OPSIN_API_KEY): not an API key of Opsin: `opsin_` and 64 hexadecimal digits")
    all_headers = httpx2.Headers(headers)
    if key:
        all_headers.setdefault("X-API-Key", key)
    return all_headers


def create_http_client(kind: Callable[..., T], url: str | None, headers: httpx2.Headers) -> T:
    """Return a client of httpx2. Raises Unreachable if the address is not valid, or the environment names a proxy or certificates that
    httpx2 cannot use."""
    full_url = base_url(url)
    address = full_url.copy_with(userinfo=b"")  # messages show it, and httpx2 logs it
    credentials = (full_url.username, full_url.password) if full_url.userinfo else None
    try:
        return kind(base_url=address, auth=credentials, headers=headers, limits=LIMITS)
    except (ImportError, OSError, ValueError, httpx2.InvalidURL) as error:
        is_safe = isinstance(error, (ImportError, OSError))  # others repeat parts of a proxy's address, and so of its password
        hidden = not is_safe and any(name.lower().endswith("_proxy") and "@" in value for name, value in os.environ.items())
        reason = URL_ESCAPING_HINT if hidden else error
        raise Unreachable(f"{address}: a proxy or certificates of the environment cannot be used ({reason})") from None


def base_url(url: str | None) -> httpx2.URL:
    """Return the address of the service: `url`, else that of the environment, else the default. Raises Unreachable if it is not valid."""
    address = url or os.environ.get("OPSIN_URL") or DEFAULT_URL
    try:
        parsed = httpx2.URL(address)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise httpx2.InvalidURL("it must be http:// or https:// and a host")
        parsed.raw_host.decode().encode("idna")  # invalid names would raise other errors when they are dialled
        if not 0 <= (parsed.port or 0) <= MAX_PORT:
            raise httpx2.InvalidURL(f"Invalid port: {parsed.port}")
    except (httpx2.InvalidURL, UnicodeError) as error:
        without_credentials, replaced = CREDENTIALS.subn(r"\1", address)
        raise Unreachable(f"{without_credentials}: not the address of a service ({URL_ESCAPING_HINT if replaced else error})") from None
    return parsed


def readiness(response: httpx2.Response) -> Readiness:
    return Readiness(True) if response.is_success else Readiness(False, error_from_response(response).detail)
