"""Requests are admitted by their API key, at the rate that the key allows, before their bodies are read."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from starlette.requests import Request
from starlette.types import Scope

from server.gateway.auth.key_file import ApiKey, KeyLines, digest_of, read_file, read_lines
from server.http.problems import Kind, Problem
from server.http.requests import Head
from server.telemetry import logs

LOOK_EVERY_S = 1.0
SETTLES_S = 0.1
"""A file that changes is read again after so long, until it is the same twice: an editor may be in the middle of writing it."""
MOST_NAMED = 10
"""Lines that admit nobody and are named in the log; of the others it has the number."""
OPEN_PATHS = frozenset({"/", "/status", "/docs", "/openapi.json"})
OPEN_FOLDERS = ("/health/", "/v2/health/", "/docs/static/", "/static/")
"""Health checks and the pages, which ask for a key themselves: these answer everybody."""
BEARER = b"bearer "

log = logs.get(__name__)


class KeyRing:
    """The keys of a file, which is looked at each second. What cannot be read later leaves the last good ones."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where the file cannot be read."""
        self._path = path
        self._content = read_file(path)
        self._lines = KeyLines()
        self._names: frozenset[str] = frozenset()
        self._unreadable = False
        self._take(self._content)

    def find(self, head: Head) -> ApiKey:
        """Return the holder of the key in a request's head. Raises Problem (401)."""
        sent = _sent(head)
        if not sent:
            raise Problem(
                Kind.UNAUTHORIZED,
                "this service needs an API key: send `Authorization: Bearer KEY` or `X-API-Key: KEY` (Opsin's client sends OPSIN_API_KEY)",
            )
        if len(sent) > 1:
            raise Problem(Kind.UNAUTHORIZED, "two different keys were sent; send one")
        found = self._lines.keys.get(digest_of(sent.pop()))
        if found is None:
            raise Problem(Kind.UNAUTHORIZED, "this key is not known here, or it was revoked")
        return found

    def has(self, name: str) -> bool:
        """Whether a name still has a key."""
        return name in self._names

    async def watch_forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except Exception:
                log.exception("looking at the file of API keys failed")

    async def look(self) -> None:
        """Take what the file holds now."""
        try:
            content = await asyncio.to_thread(read_file, self._path)
            while content != self._content:
                await asyncio.sleep(SETTLES_S)
                if (again := await asyncio.to_thread(read_file, self._path)) == content:
                    await asyncio.to_thread(self._take, content)  # reading 100,000 lines takes seconds
                content = again
        except OSError as error:
            if not self._unreadable:
                log.warning("the file of API keys cannot be read; the last keys count", reason=error.strerror)
            self._unreadable = True
        else:
            self._unreadable = False

    def _take(self, content: bytes) -> None:
        self._content, self._lines = content, read_lines(content)
        self._names = frozenset(key.name for key in self._lines.keys.values())
        log.info("API keys read", keys=len(self._lines.keys), names=len(self._names))
        if bad := sorted(self._lines.bad):
            log.warning("lines of the file of API keys admit nobody", lines=bad[:MOST_NAMED], count=len(bad))
        if not self._names:
            log.warning("the file of API keys admits nobody")


class Rates:
    """Requests of each name at the rate of its key, and a burst of one second. Each gateway lets its part through."""

    def __init__(self, gateways: Callable[[], int]) -> None:
        """gateways: how many live, this one among them."""
        self._gateways = gateways
        self._left: dict[str, tuple[float, float]] = {}
        """By name: requests that may come at once, and when that was so, in seconds."""

    def take(self, key: ApiKey, now: float) -> None:
        """Count a request. Raises Problem (429)."""
        if not key.rate:
            return
        rate = key.rate / max(1, self._gateways())
        most = max(1.0, rate)
        before, then = self._left.get(key.name, (most, now))
        left = min(most, before + rate * (now - then))
        if left < 1.0:
            detail = f"{key.name} may send {key.rate:g} requests a second, with all of its keys together"
            raise Problem(Kind.KEY_SHARE, detail, retry_after=max(1, math.ceil((1.0 - left) / rate)))
        self._left[key.name] = left - 1.0, now


class Authentication:
    """Puts `api_key` into the state of a request, and replaces the `client`'s address by the name of the key's holder.

    Paths that answer everybody get neither, so that routes behind them fail if they need them."""

    def __init__(self, keys: KeyRing, rates: Rates) -> None:
        self._keys = keys
        self._rates = rates

    def __call__(self, scope: Scope) -> None:
        """Raises Problem: 401, 429."""
        if not answers_everybody(scope["path"]):
            key = self._keys.find(Head.of(scope))
            self._rates.take(key, time.monotonic())
            scope["state"].update(api_key=key, client=key.name)


def answers_everybody(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def key_of(request: Request) -> ApiKey:
    """Return what the request may do."""
    key: ApiKey = request.scope["state"]["api_key"]
    return key


def require(right: Literal["metrics", "admin"], request: Request) -> None:
    """Raises Problem (403)."""
    key = key_of(request)
    if not (key.admin or (key.metrics and right == "metrics")):
        what = "read this" if right == "metrics" else "change models"
        raise Problem(Kind.FORBIDDEN, f"the key of {key.name} may not {what}; the operator allows it with `{right}` in the key's line")


def _sent(head: Head) -> set[bytes]:
    """Return the keys in a request's head. `Authorization` may be there for a proxy: it counts only without `X-API-Key`."""
    own = {value.strip() for value in head.raw(b"x-api-key")}
    return own or {value[len(BEARER) :].strip() for value in head.raw(b"authorization") if value[: len(BEARER)].lower() == BEARER}
