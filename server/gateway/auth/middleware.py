"""Admission of requests by their API key, at its rate, before their bodies are read."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from starlette.requests import Request
from starlette.types import Scope

from server.gateway.auth.key_file import ApiKey, ParsedKeyFile, hash_key, parse_key_file, read_file
from server.http.problems import Problem, ProblemKind
from server.http.requests import Head
from server.telemetry import logs

RELOAD_INTERVAL_S = 1.0
SETTLE_INTERVAL_S = 0.1
"""Interval at which a changed file is read again until it is the same twice: an editor may be in the middle of writing it."""
MAX_LOGGED_LINES = 10
"""Maximum number of invalid lines that are listed in the log."""
OPEN_PATHS = frozenset({"/", "/status", "/docs", "/openapi.json"})
OPEN_PATH_PREFIXES = ("/health/", "/v2/health/", "/docs/static/", "/static/")
"""Health checks and the pages, which ask for a key themselves: these need no key."""
BEARER = b"bearer "

log = logs.get(__name__)


class KeyRing:
    """The keys of a file, which is checked each second. If it cannot be read, the last good ones remain."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises OSError."""
        self._path = path
        self._content = read_file(path)
        self._lines = ParsedKeyFile()
        self._names: frozenset[str] = frozenset()
        self._unreadable = False
        self._take(self._content)

    def find(self, head: Head) -> ApiKey:
        """Return the holder of the key in a request's head. Raises Problem (401)."""
        sent = _presented_keys(head)
        if not sent:
            raise Problem(
                ProblemKind.UNAUTHORIZED,
                "this service needs an API key: send `Authorization: Bearer KEY` or `X-API-Key: KEY` (Opsin's client sends OPSIN_API_KEY)",
            )
        if len(sent) > 1:
            raise Problem(ProblemKind.UNAUTHORIZED, "two different keys were sent; send one")
        found = self._lines.keys.get(hash_key(sent.pop()))
        if found is None:
            raise Problem(ProblemKind.UNAUTHORIZED, "unknown or revoked API key")
        return found

    def has(self, name: str) -> bool:
        """Return whether a name still has a key."""
        return name in self._names

    async def watch_forever(self) -> None:
        while True:
            await asyncio.sleep(RELOAD_INTERVAL_S)
            try:
                await self.reload()
            except Exception:
                log.exception("API key file check failed")

    async def reload(self) -> None:
        """Reload the file if it has changed."""
        try:
            content = await asyncio.to_thread(read_file, self._path)
            while content != self._content:
                await asyncio.sleep(SETTLE_INTERVAL_S)
                if (again := await asyncio.to_thread(read_file, self._path)) == content:
                    await asyncio.to_thread(self._take, content)  # reading 100,000 lines takes seconds
                content = again
        except OSError as error:
            if not self._unreadable:
                log.warning("API key file unreadable; the last keys remain valid", reason=error.strerror)
            self._unreadable = True
        else:
            self._unreadable = False

    def _take(self, content: bytes) -> None:
        self._content, self._lines = content, parse_key_file(content)
        self._names = frozenset(key.name for key in self._lines.keys.values())
        log.info("API keys read", keys=len(self._lines.keys), names=len(self._names))
        if bad := sorted(self._lines.invalid_lines):
            log.warning("ignoring invalid lines in the API key file", lines=bad[:MAX_LOGGED_LINES], count=len(bad))
        if not self._names:
            log.warning("the API key file has no valid key")


class RateLimiter:
    """A rate limiter of each name's requests, with a burst of one second. Each gateway allows its share."""

    def __init__(self, gateways: Callable[[], int]) -> None:
        """gateways: returns the number of live gateways, this one included."""
        self._gateways = gateways
        self._left: dict[str, tuple[float, float]] = {}
        """Requests that were available to a name, and the time in seconds at which they were."""

    def take(self, key: ApiKey, now: float) -> None:
        """Count a request. Raises Problem (429)."""
        if not key.rate:
            return
        rate = key.rate / max(1, self._gateways())
        burst = max(1.0, rate)
        before, then = self._left.get(key.name, (burst, now))
        left = min(burst, before + rate * (now - then))
        if left < 1.0:
            detail = f"{key.name} may send {key.rate:g} requests a second, with all of its keys together"
            raise Problem(ProblemKind.KEY_QUOTA, detail, retry_after=max(1, math.ceil((1.0 - left) / rate)))
        self._left[key.name] = left - 1.0, now


class AuthenticationMiddleware:
    """A middleware that puts `api_key` into a request's state, and replaces the `client`'s address by the name of the key's holder.

    Open paths get neither, so that routes behind them fail if they need them."""

    def __init__(self, keys: KeyRing, rates: RateLimiter) -> None:
        self._keys = keys
        self._rates = rates

    def __call__(self, scope: Scope) -> None:
        """Authenticate a request. Raises Problem: 401, 429."""
        if not is_open_path(scope["path"]):
            key = self._keys.find(scope["state"]["head"])
            self._rates.take(key, time.monotonic())
            scope["state"].update(api_key=key, client=key.name)


def is_open_path(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_PATH_PREFIXES)


def request_key(request: Request) -> ApiKey:
    """Return the API key of a request."""
    key: ApiKey = request.scope["state"]["api_key"]
    return key


def require_right(right: Literal["metrics", "admin"], request: Request) -> None:
    """Require a right of the request's key. Raises Problem (403)."""
    key = request_key(request)
    if not (key.admin or (key.metrics and right == "metrics")):
        action = "read this" if right == "metrics" else "change models"
        raise Problem(
            ProblemKind.FORBIDDEN, f"the key of {key.name} may not {action}; the operator allows it with `{right}` in the key's line"
        )


def _presented_keys(head: Head) -> set[bytes]:
    """Return the keys in a request's head. `Authorization` may be there for a proxy: it counts only without `X-API-Key`."""
    keys = {value.strip() for value in head.raw(b"x-api-key")}
    return keys or {value[len(BEARER) :].strip() for value in head.raw(b"authorization") if value[: len(BEARER)].lower() == BEARER}
