"""The service's address, the headers of every request, and the answer about its readiness."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import quote

import httpx2

from opsin.api_request import ApiRequest, error_from_response
from opsin.errors import OpsinError, Unreachable
from opsin.results import Readiness

T = TypeVar("T")
Headers = Mapping[str, str]
DEFAULT_URL = "http://127.0.0.1:8000"
MAX_PORT = 2**16 - 1
CREDENTIALS = re.compile(r"^(https?://)?.*@", re.DOTALL)
"""The start of an address with a user name or password, which messages leave out."""
URL_ESCAPING_HINT = "it cannot be read; in user names and passwords write / as %2F, ? as %3F, # as %23"
"""Message for an address with a password, instead of the reason, which may repeat a part of the password."""

# Below uvicorn's five seconds, so that no request is sent down a connection that the service is just closing.
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=3.0)


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


def model_request(name: str) -> ApiRequest:
    return ApiRequest("GET", f"/v1/models/{quote(name, safe='@')}")


def readiness(response: httpx2.Response) -> Readiness:
    return Readiness(True) if response.is_success else Readiness(False, error_from_response(response).detail)
