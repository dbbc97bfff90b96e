"""What both clients know of a service: where it is, how requests are sent to it and repeated, whether it is ready."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from urllib.parse import quote

import httpx

from opsin.calls import Budget, Call, checked, problem_of, transport_error
from opsin.errors import OpsinError, Unreachable
from opsin.results import Readiness

Headers = Mapping[str, str]
DEFAULT_URL = "http://127.0.0.1:8000"

# Below uvicorn's five seconds, so that no request is sent down a connection that the service is just closing.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=3.0)


class Connection:
    """Connections to one service. `exchange` repeats a call after 429 and 503, `retries` times at most."""

    def __init__(self, url: str | None, api_key: str | None, timeout: float, retries: int, headers: Headers | None) -> None:
        self.timeout, self._retries = timeout, retries
        self.http = httpx.Client(base_url=base_url(url), headers=with_key(headers, api_key), limits=LIMITS)

    @property
    def url(self) -> str:
        return str(self.http.base_url).rstrip("/")

    def exchange(self, call: Call) -> httpx.Response:
        """Raises OpsinError."""
        budget = Budget(self.timeout if call.timeout is None else call.timeout, self._retries)
        while True:
            response = self.send(call, budget.left())
            pause = budget.pause_before_retry(response)
            if pause is None:
                return checked(response)
            time.sleep(pause)

    def send(self, call: Call, timeout: float) -> httpx.Response:
        """Send it once. Raises DeadlinePassed and Unreachable."""
        try:
            return self.http.request(**call.arguments(timeout))
        except httpx.HTTPError as error:
            raise transport_error(error, self.url, timeout) from error


class AsyncConnection:
    """`Connection` for asyncio."""

    def __init__(self, url: str | None, api_key: str | None, timeout: float, retries: int, headers: Headers | None) -> None:
        self.timeout, self._retries = timeout, retries
        self.http = httpx.AsyncClient(base_url=base_url(url), headers=with_key(headers, api_key), limits=LIMITS)

    @property
    def url(self) -> str:
        return str(self.http.base_url).rstrip("/")

    async def exchange(self, call: Call) -> httpx.Response:
        """Raises OpsinError."""
        budget = Budget(self.timeout if call.timeout is None else call.timeout, self._retries)
        while True:
            response = await self.send(call, budget.left())
            pause = budget.pause_before_retry(response)
            if pause is None:
                return checked(response)
            await asyncio.sleep(pause)

    async def send(self, call: Call, timeout: float) -> httpx.Response:
        """Send it once. Raises DeadlinePassed and Unreachable."""
        try:
            return await self.http.request(**call.arguments(timeout))
        except httpx.HTTPError as error:
            raise transport_error(error, self.url, timeout) from error


def with_key(headers: Headers | None, api_key: str | None) -> httpx.Headers:
    """The headers of every request. The key travels in `X-API-Key`, since `Authorization` may be for a proxy; one that is given wins.
    Raises OpsinError for what cannot be a key, without repeating it."""
    key = os.environ.get("OPSIN_API_KEY", "").strip() if api_key is None else api_key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise OpsinError("api_key (or OPSIN_API_KEY): no key of Opsin; one is `opsin_` and 64 hexadecimal digits")
    sent = httpx.Headers(headers)
    if key:
        sent.setdefault("X-API-Key", key)
    return sent


def base_url(url: str | None) -> httpx.URL:
    """Raises Unreachable for what is no address."""
    address = url or os.environ.get("OPSIN_URL") or DEFAULT_URL
    try:
        return httpx.URL(address)
    except httpx.InvalidURL as error:
        raise Unreachable(f"{address}: no address of a service ({error})") from None


def model_call(name: str) -> Call:
    return Call("GET", f"/v1/models/{quote(name, safe='@')}")


def readiness(response: httpx.Response) -> Readiness:
    return Readiness(True) if response.is_success else Readiness(False, problem_of(response).detail)
