"""One request and what becomes of it: how it is sent, when it is repeated, which error its response means."""

from __future__ import annotations

import math
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx2

from opsin.errors import DeadlinePassed, Failed, OpsinError, Refused, Unreachable, of_status

T = TypeVar("T")

LONGEST_S = 3600.0
"""Longest deadline of a call that waits, whose client may wait longer; for a job OPSIN_JOB_TIMEOUT may allow more."""
MOST_WAIT_S = 1e9
"""Seconds that a socket waits where a call is given longer, or for ever: more overflow the system's clocks."""
ANSWER_MARGIN = 2.0
"""Seconds that the client waits beyond the deadline it gave the service, so that the service's own 504 arrives."""

FIRST_PAUSE = 0.5
"""Seconds before the first retry where the service gives no Retry-After; doubled each time."""
MOST_RETRY_AFTER = 3600.0
"""Seconds that a Retry-After may ask for: who asks again once an hour is no burden."""


TRANSPORT_ERRORS = (httpx2.HTTPError, httpx2.InvalidURL)
"""Exceptions of httpx2 where no response comes. None of them reaches a caller of the client."""


@dataclass(frozen=True)
class Call:
    """One request before it is sent; the deadline is added at each attempt."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    pictures: tuple[bytes, ...] = ()
    """Files of one part, `image`."""
    parts: Mapping[str, bytes | Sequence[bytes]] = field(default_factory=dict)
    """Files by the names of their parts, where there are several."""
    form: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Texts that travel beside pictures or parts, or alone: options that may be repeated."""
    json: Mapping[str, Any] | None = None
    """The body, in place of pictures and parts."""
    timeout: float | None = None
    later: bool = False
    """To be answered with a job, whose deadline `timeout` is."""

    def to_be_answered_later(self) -> Call:
        """Under a key of its own, so that no repetition makes a second job."""
        headers = {**self.headers, "Prefer": "respond-async", "Idempotency-Key": uuid.uuid4().hex}
        if self.timeout is not None:
            headers["X-Request-Timeout"] = f"{LONGEST_S if self.timeout == math.inf else max(self.timeout, 0.001):.3f}"
        return replace(self, headers=headers, timeout=None, later=True)

    def arguments(self, timeout: float) -> dict[str, Any]:
        """For `httpx2.Client.request`. One picture alone is the body itself, several are a multipart form."""
        told = f"{min(max(timeout, 0.001), LONGEST_S):.3f}"
        arguments: dict[str, Any] = {
            "method": self.method,
            "url": self.path,
            "params": dict(self.query),
            "headers": {**self.headers} if self.later else {**self.headers, "X-Request-Timeout": told},
            "timeout": min(timeout, MOST_WAIT_S) + ANSWER_MARGIN,
        }
        if self.json is not None:
            arguments["json"] = self.json
        elif self.parts or (self.form and not self.pictures):
            given = [(name, [data] if isinstance(data, bytes) else data) for name, data in self.parts.items()]
            files: list[Any] = [(name, (name, data, "application/octet-stream")) for name, several in given for data in several]
            arguments["files"] = files + [(name, (None, text)) for name, texts in self.form.items() for text in texts]
        elif len(self.pictures) == 1 and not self.form:
            arguments["content"] = self.pictures[0]
            arguments["headers"]["Content-Type"] = "application/octet-stream"
        elif self.pictures:
            arguments["files"] = [("image", (f"image{i}", data, "application/octet-stream")) for i, data in enumerate(self.pictures)]
            arguments["data"] = {name: list(values) for name, values in self.form.items()}
        return arguments


class Budget:
    """The time and the attempts that a call has left."""

    def __init__(self, timeout: float, retries: int) -> None:
        if not timeout > 0:  # nor is NaN
            raise ValueError(f"timeout: {timeout:g} s; it must be positive")
        self._ends = time.monotonic() + timeout
        self._retries = retries
        self._pause = FIRST_PAUSE

    def left(self) -> float:
        return max(self._ends - time.monotonic(), 0.001)

    def pause_before_retry(self, response: httpx2.Response) -> float | None:
        """Seconds to wait before sending again; None if this response is the last word."""
        if response.status_code not in (429, 503) or not self._retries or problem_of(response).is_lasting:
            return None
        asked = retry_after(response)
        pause = self._pause if asked is None else asked
        if pause >= self.left():
            return None
        self._retries -= 1
        self._pause *= 2
        return pause


def call_of(path: str, options: Mapping[str, Any], *, method: str = "POST", accept: str = "application/json", **content: Any) -> Call:
    """A call with the options of one of the client's methods. content: further fields of `Call`."""
    query = query_of({name: value for name, value in options.items() if name not in ("timeout", "request_id")})
    headers = {"Accept": accept}
    if request_id := options.get("request_id"):
        headers["X-Request-ID"] = request_id
    return Call(method, path, query=query, headers=headers, timeout=options.get("timeout"), **content)


def query_of(options: Mapping[str, Any]) -> dict[str, str]:
    """Return options as texts, without those that are None."""
    return {name: option_text(value) for name, value in options.items() if value is not None}


def option_text(value: Any) -> str:
    """Write the value of an option as the service reads it in a URL or a form."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_texts(name: str, texts: Sequence[str]) -> None:
    """Raises ValueError for a text that UTF-8 cannot hold: one with a lone surrogate, as a badly decoded file name has."""
    for index, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}[{index}]: {text!r} holds a lone surrogate, which UTF-8 cannot") from error


def check_names(method: str, options: Iterable[str], table: type[Any]) -> None:
    """Raises TypeError for an option that a method does not have. table: the TypedDict of those that it has."""
    unknown = [name for name in options if name not in table.__annotations__]
    if unknown:
        raise TypeError(f"{method}: no option {unknown[0]!r}; the options are {', '.join(table.__annotations__)}")


def checked(response: httpx2.Response) -> httpx2.Response:
    if response.is_success:
        return response
    raise problem_of(response)


def understood(response: httpx2.Response, read: Callable[[Any], T]) -> T:
    """Read an answer's JSON with `read`. Raises Failed for what Opsin never answers: something else listens there."""
    return interpreted(response, lambda answer: read(answer.json()))


def interpreted(response: httpx2.Response, read: Callable[[httpx2.Response], T]) -> T:
    """Return what `read` makes of an answer of any kind. Raises Failed as `understood` does."""
    try:
        return read(response)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, EOFError, OSError, zipfile.BadZipFile) as error:
        kind = response.headers.get("Content-Type", "no type")
        raise Failed(
            f"{response.url}: no answer of Opsin: {len(response.content)} bytes of {kind} ({type(error).__name__}: {error})"
        ) from error


def id_of_job(accepted: Mapping[str, Any]) -> str:
    """Read the id of a job that the service has taken."""
    return str(accepted["id"])


def problem_of(response: httpx2.Response) -> OpsinError:
    """The error of a response: its problem document, or its bare text where a proxy answered in the service's place."""
    try:
        told = response.json()
    except (ValueError, RecursionError):
        told = None
    document = told if isinstance(told, dict) else {"detail": " ".join(response.text.split())[:200]}
    problem = {name: value for name, value in document.items() if isinstance(value, str)}
    return of_status(response.status_code, told=isinstance(told, dict) and "detail" in told)(
        problem.get("detail") or response.reason_phrase or "no reason given",
        status=response.status_code,
        title=problem.get("title") or response.reason_phrase,
        field=problem.get("field"),
        request_id=problem.get("request_id") or response.headers.get("X-Request-ID"),
        retry_after=retry_after(response),
        type=problem.get("type", ""),
    )


def retry_after(response: httpx2.Response) -> float | None:
    """Seconds; None where the response names no number of them."""
    try:
        asked = float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
    return None if math.isnan(asked) else min(max(0.0, asked), MOST_RETRY_AFTER)


def transport_error(error: httpx2.HTTPError | httpx2.InvalidURL, url: str, timeout: float) -> OpsinError:
    """Return the error of a request without a response; `error` is one of `TRANSPORT_ERRORS`."""
    if isinstance(error, httpx2.InvalidURL):
        return Refused(f"{url}: a request with so long an id, name or option cannot be sent ({error})")
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        return DeadlinePassed(f"{url}: no answer within {timeout:.3g} s")
    hint = "; is `opsin serve` running? OPSIN_URL names another address" if isinstance(error, httpx2.ConnectError) else ""
    return Unreachable(f"{url}: no answer ({str(error) or type(error).__name__}){hint}")
