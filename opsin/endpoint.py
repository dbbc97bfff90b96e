"""A service as a client knows it: where it is, what every request to it carries, whether it is ready."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import quote

import httpx2

from opsin.api_request import Call, problem_of
from opsin.errors import OpsinError, Unreachable
from opsin.results import Readiness

T = TypeVar("T")
Headers = Mapping[str, str]
DEFAULT_URL = "http://127.0.0.1:8000"
MOST_PORT = 2**16 - 1
CREDENTIALS = re.compile(r"^(https?://)?.*@", re.DOTALL)
"""The begin of an address with a user name or password, which messages leave out."""
UNREADABLE = "it cannot be read; in user names and passwords write / as %2F, ? as %3F, # as %23"
"""Said of one with a password in place of the reason, which may repeat a part of it."""

# Below uvicorn's five seconds, so that no request is sent down a connection that the service is just closing.
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=3.0)


def with_key(headers: Headers | None, api_key: str | None) -> httpx2.Headers:
    """The headers of every request. The key travels in `X-API-Key`, since `Authorization` may be for a proxy; one that is given wins.
    Raises OpsinError for what cannot be a key, without repeating it."""
    key = os.environ.get("OPSIN_API_KEY", "").strip() if api_key is None else api_key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise OpsinError("api_key (or OPSIN_API_KEY): no key of Opsin; one is `opsin_` and 64 hexadecimal digits")
    sent = httpx2.Headers(headers)
    if key:
        sent.setdefault("X-API-Key", key)
    return sent


def opened(kind: Callable[..., T], url: str | None, headers: httpx2.Headers) -> T:
    """A client of httpx2. Raises Unreachable for what is no address, and where the environment names a proxy or certificates that httpx2
    cannot use."""
    given = base_url(url)
    address = given.copy_with(userinfo=b"")  # messages show it, and httpx2 logs it
    credentials = (given.username, given.password) if given.userinfo else None
    try:
        return kind(base_url=address, auth=credentials, headers=headers, limits=LIMITS)
    except (ImportError, OSError, ValueError, httpx2.InvalidURL) as error:
        told = isinstance(error, (ImportError, OSError))  # others repeat pieces of a proxy's address, and so of its password
        hidden = not told and any(name.lower().endswith("_proxy") and "@" in value for name, value in os.environ.items())
        reason = UNREADABLE if hidden else error
        raise Unreachable(f"{address}: a proxy or certificates of the environment cannot be used ({reason})") from None


def base_url(url: str | None) -> httpx2.URL:
    """Raises Unreachable for what is no address."""
    address = url or os.environ.get("OPSIN_URL") or DEFAULT_URL
    try:
        found = httpx2.URL(address)
        if found.scheme not in ("http", "https") or not found.host:
            raise httpx2.InvalidURL("it must be http:// or https:// and a host")
        found.raw_host.decode().encode("idna")  # what is no name would end in errors of other kinds when it is dialled
        if not 0 <= (found.port or 0) <= MOST_PORT:
            raise httpx2.InvalidURL(f"Invalid port: {found.port}")
    except (httpx2.InvalidURL, UnicodeError) as error:
        shown, hidden = CREDENTIALS.subn(r"\1", address)
        raise Unreachable(f"{shown}: no address of a service ({UNREADABLE if hidden else error})") from None
    return found


def model_call(name: str) -> Call:
    return Call("GET", f"/v1/models/{quote(name, safe='@')}")


def readiness(response: httpx2.Response) -> Readiness:
    return Readiness(True) if response.is_success else Readiness(False, problem_of(response).detail)
