# `make client` derives connection.py from this file.
"""How requests are sent to a service, and repeated."""

from __future__ import annotations

import asyncio

import httpx2

from opsin.api_request import TRANSPORT_ERRORS, Budget, Call, checked, transport_error
from opsin.endpoint import Headers, opened, with_key


class AsyncConnection:
    """Connections to one service. `exchange` repeats a call after 429 and 503, `retries` times at most."""

    def __init__(self, url: str | None, api_key: str | None, timeout: float, retries: int, headers: Headers | None) -> None:
        self.timeout, self._retries = timeout, retries
        self.http = opened(httpx2.AsyncClient, url, with_key(headers, api_key))

    @property
    def url(self) -> str:
        return str(self.http.base_url).rstrip("/")

    async def exchange(self, call: Call) -> httpx2.Response:
        """Raises OpsinError."""
        budget = Budget(self.timeout if call.timeout is None else call.timeout, self._retries)
        while True:
            response = await self.send(call, budget.left())
            pause = budget.pause_before_retry(response)
            if pause is None:
                return checked(response)
            await asyncio.sleep(pause)

    async def send(self, call: Call, timeout: float) -> httpx2.Response:
        """Send it once. Raises DeadlinePassed and Unreachable."""
        try:
            return await self.http.request(**call.arguments(timeout))
        except TRANSPORT_ERRORS as error:
            raise transport_error(error, self.url, timeout) from error
