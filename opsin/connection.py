# Derived from async_connection.py by `make client`: change that file.
"""The connections to a service, over which requests are sent and retried."""

from __future__ import annotations

import time

import httpx2

from opsin.api_request import (
    TRANSPORT_ERRORS,
    ApiRequest,
    Headers,
    RetryBudget,
    create_http_client,
    raise_for_problem,
    request_headers,
    transport_error,
)


class ServiceConnection:
    """Connections to one service. `exchange` retries a request after 429 and 503, at most `retries` times."""

    def __init__(self, url: str | None, api_key: str | None, timeout: float, retries: int, headers: Headers | None) -> None:
        self.timeout, self._retries = timeout, retries
        self.http = create_http_client(httpx2.Client, url, request_headers(headers, api_key))

    @property
    def url(self) -> str:
        return str(self.http.base_url).rstrip("/")

    def exchange(self, request: ApiRequest) -> httpx2.Response:
        """Send a request, retry it if necessary, and return a successful response. Raises OpsinError."""
        budget = RetryBudget(self.timeout if request.timeout is None else request.timeout, self._retries)
        while True:
            response = self.send(request, budget.remaining_s())
            pause = budget.pause_before_retry(response)
            if pause is None:
                return raise_for_problem(response)
            time.sleep(pause)

    def send(self, request: ApiRequest, timeout: float) -> httpx2.Response:
        """Send a request once. Raises DeadlinePassed and Unreachable."""
        try:
            return self.http.request(**request.arguments(timeout))
        except TRANSPORT_ERRORS as error:
            raise transport_error(error, self.url, timeout) from error
