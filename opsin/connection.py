# Derived from async_connection.py by `make client`: change that file.
"""How requests are sent to a service, and repeated."""

from __future__ import annotations

import time

import httpx2

from opsin.api_request import TRANSPORT_ERRORS, Budget, Call, checked, transport_error
from opsin.endpoint import Headers, opened, with_key


class Connection:
    """Connections to one service. `exchange` repeats a call after 429 and 503, `retries` times at most."""

    def __init__(self, url: str | None, api_key: str | None, timeout: float, retries: int, headers: Headers | None) -> None:
        self.timeout, self._retries = timeout, retries
        self.http = opened(httpx2.Client, url, with_key(headers, api_key))

    @property
    def url(self) -> str:
        return str(self.http.base_url).rstrip("/")

    def exchange(self, call: Call) -> httpx2.Response:
        """Raises OpsinError."""
        budget = Budget(self.timeout if call.timeout is None else call.timeout, self._retries)
        while True:
            response = self.send(call, budget.left())
            pause = budget.pause_before_retry(response)
            if pause is None:
                return checked(response)
            time.sleep(pause)

    def send(self, call: Call, timeout: float) -> httpx2.Response:
        """Send it once. Raises DeadlinePassed and Unreachable."""
        try:
            return self.http.request(**call.arguments(timeout))
        except TRANSPORT_ERRORS as error:
            raise transport_error(error, self.url, timeout) from error
