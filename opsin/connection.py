"""What both clients know of a service: where it is, how it is reached, whether it is ready."""

from __future__ import annotations

import os
from urllib.parse import quote

import httpx

from opsin.calls import Call, problem_of
from opsin.errors import Unreachable
from opsin.results import Readiness

DEFAULT_URL = "http://127.0.0.1:8000"

# Below uvicorn's five seconds, so that no request is sent down a connection that the service is just closing.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=3.0)


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
