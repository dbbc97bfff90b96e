"""The Python client, sync and async.

with Client("http://127.0.0.1:8000") as client:
    print(client.classify("cat.jpg").label)
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack, overload
from urllib.parse import quote

import httpx

from opsin import results
from opsin.errors import DeadlinePassed, OpsinError, Unreachable, of_status
from opsin.pictures import Picture, encoded
from opsin.results import Classification, Model, Readiness

DEFAULT_URL = "http://127.0.0.1:8000"
Priority = Literal["high", "normal", "low"]
Pictures = Sequence[Picture]

# Below uvicorn's five seconds, so that no request is sent down a connection that the service is just closing.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=3.0)

ANSWER_MARGIN = 2.0
"""Seconds that the client waits beyond the deadline it gave the service, so that the service's own 504 arrives."""

FIRST_PAUSE = 0.5
"""Seconds before the first retry where the service gives no Retry-After; doubled each time."""


class ClassifyOptions(TypedDict, total=False):
    """What is left out or None is the service's default."""

    model: str | None
    """`name` or `name@version`."""
    top_k: int | None
    merge: int | str | None
    """`"off"`, how many tokens to merge in each block, or the name of a rung of the bundle's ladder."""
    priority: Priority | None
    timeout: float | None
    """Seconds for this call, retries included, in place of the client's."""
    request_id: str | None
    """Under which the service's logs speak of this request."""


class Client:
    """A client of one service; close it, or use it as a context manager. May be shared between threads.

    `url` defaults to `OPSIN_URL`, else http://127.0.0.1:8000. `timeout` is in seconds and covers a whole call, retries included.
    `retries` bounds how often a call is repeated after 429 or 503, each time after the pause that the service asks for in
    Retry-After; where the pause does not fit into the timeout, the error is raised at once. Nothing else is retried.
    """

    def __init__(
        self, url: str | None = None, *, timeout: float = 60.0, retries: int = 2, headers: Mapping[str, str] | None = None
    ) -> None:
        self._timeout, self._retries = timeout, retries
        self._http = httpx.Client(base_url=_base(url), headers=headers, limits=LIMITS)

    @property
    def url(self) -> str:
        return str(self._http.base_url).rstrip("/")

    @overload
    def classify(self, images: Picture, **options: Unpack[ClassifyOptions]) -> Classification: ...  # type: ignore[overload-overlap]
    @overload
    def classify(self, images: Pictures, **options: Unpack[ClassifyOptions]) -> list[Classification]: ...
    def classify(self, images: Picture | Pictures, **options: Unpack[ClassifyOptions]) -> Classification | list[Classification]:
        """The labels of one picture, or of several in one request (all or nothing), in their order.

        A picture is a path, the bytes of a file, a binary file, a uint8 array (H, W[, C]) or a Pillow image.
        `options` are those of `ClassifyOptions`. Raises OpsinError.
        """
        found = results.classifications(self._exchange(_classify_call(images, **options)).json())
        return found if _several(images) else found[0]

    def models(self) -> list[Model]:
        """The bundles that the service knows."""
        return [results.model(entry) for entry in self._exchange(Call("GET", "/v1/models")).json()["models"]]

    def model(self, name: str) -> Model:
        """One bundle by `name` or `name@version`. Raises Refused (404) if there is none."""
        return results.model(self._exchange(_model_call(name)).json())

    def health(self) -> bool:
        """Whether the service runs."""
        try:
            return self._send(Call("GET", "/health/live"), self._timeout).is_success
        except OpsinError:
            return False

    def ready(self) -> Readiness:
        """Whether it can take requests now."""
        try:
            return _readiness(self._send(Call("GET", "/health/ready"), self._timeout))
        except OpsinError as error:
            return Readiness(False, str(error))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _exchange(self, call: Call) -> httpx.Response:
        budget = _Budget(self._timeout if call.timeout is None else call.timeout, self._retries)
        while True:
            response = self._send(call, budget.left())
            pause = budget.pause_before_retry(response)
            if pause is None:
                return _checked(response)
            time.sleep(pause)

    def _send(self, call: Call, timeout: float) -> httpx.Response:
        try:
            return self._http.request(**call.arguments(timeout))
        except httpx.HTTPError as error:
            raise _transport_error(error, self.url, timeout) from error


class AsyncClient:
    """`Client` for asyncio: the same calls, awaited."""

    def __init__(
        self, url: str | None = None, *, timeout: float = 60.0, retries: int = 2, headers: Mapping[str, str] | None = None
    ) -> None:
        self._timeout, self._retries = timeout, retries
        self._http = httpx.AsyncClient(base_url=_base(url), headers=headers, limits=LIMITS)

    @property
    def url(self) -> str:
        return str(self._http.base_url).rstrip("/")

    @overload
    async def classify(self, images: Picture, **options: Unpack[ClassifyOptions]) -> Classification: ...  # type: ignore[overload-overlap]
    @overload
    async def classify(self, images: Pictures, **options: Unpack[ClassifyOptions]) -> list[Classification]: ...
    async def classify(self, images: Picture | Pictures, **options: Unpack[ClassifyOptions]) -> Classification | list[Classification]:
        """See `Client.classify`. Files are read and arrays encoded in a thread."""
        call = await asyncio.to_thread(_classify_call, images, **options)
        found = results.classifications((await self._exchange(call)).json())
        return found if _several(images) else found[0]

    async def models(self) -> list[Model]:
        return [results.model(entry) for entry in (await self._exchange(Call("GET", "/v1/models"))).json()["models"]]

    async def model(self, name: str) -> Model:
        return results.model((await self._exchange(_model_call(name))).json())

    async def health(self) -> bool:
        try:
            return (await self._send(Call("GET", "/health/live"), self._timeout)).is_success
        except OpsinError:
            return False

    async def ready(self) -> Readiness:
        try:
            return _readiness(await self._send(Call("GET", "/health/ready"), self._timeout))
        except OpsinError as error:
            return Readiness(False, str(error))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _exchange(self, call: Call) -> httpx.Response:
        budget = _Budget(self._timeout if call.timeout is None else call.timeout, self._retries)
        while True:
            response = await self._send(call, budget.left())
            pause = budget.pause_before_retry(response)
            if pause is None:
                return _checked(response)
            await asyncio.sleep(pause)

    async def _send(self, call: Call, timeout: float) -> httpx.Response:
        try:
            return await self._http.request(**call.arguments(timeout))
        except httpx.HTTPError as error:
            raise _transport_error(error, self.url, timeout) from error


@dataclass(frozen=True)
class Call:
    """One request before it is sent; the deadline is added at each attempt."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    pictures: tuple[bytes, ...] = ()
    timeout: float | None = None

    def arguments(self, timeout: float) -> dict[str, Any]:
        """For `httpx.Client.request`. One picture is the body itself, several are a multipart form."""
        arguments: dict[str, Any] = {
            "method": self.method,
            "url": self.path,
            "params": dict(self.query),
            "headers": {**self.headers, "X-Request-Timeout": f"{timeout:.3f}"},
            "timeout": timeout + ANSWER_MARGIN,
        }
        if len(self.pictures) == 1:
            arguments["content"] = self.pictures[0]
            arguments["headers"]["Content-Type"] = "application/octet-stream"
        elif self.pictures:
            arguments["files"] = [("image", (f"image{i}", data, "application/octet-stream")) for i, data in enumerate(self.pictures)]
        return arguments


class _Budget:
    """The time and the attempts that a call has left."""

    def __init__(self, timeout: float, retries: int) -> None:
        if timeout <= 0:
            raise ValueError(f"timeout: {timeout:g} s; it must be positive")
        self._ends = time.monotonic() + timeout
        self._retries = retries
        self._pause = FIRST_PAUSE

    def left(self) -> float:
        return max(self._ends - time.monotonic(), 0.001)

    def pause_before_retry(self, response: httpx.Response) -> float | None:
        """Seconds to wait before sending again; None if this response is the last word."""
        if response.status_code not in (429, 503) or not self._retries:
            return None
        asked = _retry_after(response)
        pause = self._pause if asked is None else asked
        if pause >= self.left():
            return None
        self._retries -= 1
        self._pause *= 2
        return pause


def _base(url: str | None) -> str:
    return url or os.environ.get("OPSIN_URL") or DEFAULT_URL


def _several(images: Picture | Pictures) -> bool:
    return isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview)


def _classify_call(
    images: Picture | Pictures,
    model: str | None = None,
    top_k: int | None = None,
    merge: int | str | None = None,
    priority: Priority | None = None,
    timeout: float | None = None,
    request_id: str | None = None,
) -> Call:
    pictures: Any = images if _several(images) else [images]
    if not len(pictures):
        raise ValueError("images: at least one picture is needed")
    options = {"model": model, "top_k": top_k, "merge": merge, "priority": priority}
    return Call(
        "POST",
        "/v1/classify",
        query={name: str(value) for name, value in options.items() if value is not None},
        headers={"X-Request-ID": request_id} if request_id else {},
        pictures=tuple(encoded(picture) for picture in pictures),
        timeout=timeout,
    )


def _model_call(name: str) -> Call:
    return Call("GET", f"/v1/models/{quote(name, safe='@')}")


def _readiness(response: httpx.Response) -> Readiness:
    return Readiness(True) if response.is_success else Readiness(False, _problem(response).detail)


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    raise _problem(response)


def _problem(response: httpx.Response) -> OpsinError:
    """The error of a response: its problem document, or its bare text where a proxy answered in the service's place."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"detail": " ".join(response.text.split())[:200]}
    return of_status(response.status_code)(
        problem.get("detail") or response.reason_phrase or "no reason given",
        status=response.status_code,
        title=problem.get("title") or response.reason_phrase,
        field=problem.get("field"),
        request_id=problem.get("request_id") or response.headers.get("X-Request-ID"),
        retry_after=_retry_after(response),
    )


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None


def _transport_error(error: httpx.HTTPError, url: str, timeout: float) -> OpsinError:
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return DeadlinePassed(f"{url}: no answer within {timeout:.3g} s")
    return Unreachable(f"{url}: no answer ({str(error) or type(error).__name__})")
