"""Connections to Redis or Valkey from one URL, and what both ends of the queue make of its commands and errors.

`redis://`, `rediss://` and `unix://` are redis-py's own, with its query options (`?ssl_ca_certs=/path`); `redis+sentinel://` is Opsin's.
redis-py's defaults are changed where they hurt: RESP2 (one shape of replies), no silent retries (a repeated read loses what the first one
was given), and a socket timeout that outlasts the longest blocking read but still notices a half-open connection.

redis-py's client spends several times the cost of a command on pools, retries, deprecations and observation. So frequent commands use its
connections (address, TLS, password, Sentinel, protocol) directly, and get answers as Redis sent them, without per-command callbacks.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from server.queue.keys import CELL, Keyspace

log = logging.getLogger(__name__)

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel")
FORBIDDEN_OPTIONS = frozenset({"protocol", "decode_responses", "encoding", "encoding_errors"})
"""Options of redis-py that would change what answers look like."""
SENTINEL_PORT = 26379
URL_ESCAPING_HINT = "it cannot be read; in passwords write / as %2F, ? as %3F, @ as %40, : as %3A"
CONNECT_TIMEOUT_S = 2.0
SENTINEL_TIMEOUT_S = 1.0
ANSWER_TIMEOUT_S = 5.0

CONNECTION_ERRORS = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)  # also: no master known to Sentinel
"""redis-py raises these while the server does not answer: try again soon."""
REFUSAL_CODES = frozenset({"NOREPLICAS", "MISCONF", "BUSY", "UNBLOCKED", "WRONGTYPE"})
"""First words of errors of a server that answers and refuses to work. It counts as unavailable until an operator has mended it, for example
a key that another program has written."""
UNAVAILABLE_ERRORS = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.NoPermissionError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)
"""Errors of which redis-py removes the first word."""
REFUSED_SCRIPTS = ("ACL failure in script", "Error compiling script")
"""Beginnings of such errors of scripts: one of its commands was not allowed, or the server is too old for it."""
MIN_REDIS_MAJOR = 7
"""Major version of Redis whose scripts may say that they run above its maxmemory. Every Valkey calls itself at least that."""
LOG_EVERY_S = 10.0
CHUNK_BYTES = 256 * 1024
"""Also the largest argument that a script is given: Redis stands still while it reads one."""
VALUE_TTL_MS = 120_000
"""Time to live of a value after its last chunk: an output is read at once or never, a message is taken over by the queue."""
FOREIGN = "WRONGTYPE"
"""First word of errors about a key that another program has written over."""


class RedisUnavailable(Exception):
    """503: Redis does not answer or refuses to write, or did so for longer than `redis_grace`."""

    retry_after = 5

    def __init__(self, detail: str = "the queue's Redis does not answer", refusal: str = "", cause: str = "") -> None:
        super().__init__(f"{detail}: {cause}" if cause else detail)
        self.detail = detail
        """The message for clients."""
        self.refusal = refusal
        """Redis' own words, if it answers but refuses to work; empty if it does not answer."""
        self.cause = cause
        """redis-py's words, for the log alone: they name the address."""

    @property
    def is_about_key(self) -> bool:
        """Whether it is about one key, which holds what we cannot read: other keys may be usable."""
        return self.refusal.startswith(FOREIGN)

    @staticmethod
    def unreadable(key: str, reason: Exception) -> RedisUnavailable:
        """Return the error of a key that holds what no process of Opsin wrote."""
        refusal = f"{FOREIGN} {key} cannot be read: {reason}"
        return RedisUnavailable(f"the queue's Redis refuses to work: {refusal}", refusal)


def refusal(error: BaseException) -> str:
    """Return what the server said, if it answered and refuses to work for now; else an empty string."""
    message = str(error)
    is_refusal = message.partition(" ")[0] in REFUSAL_CODES or message.startswith(REFUSED_SCRIPTS)
    return message if is_refusal or isinstance(error, UNAVAILABLE_ERRORS) else ""


def unsuitable(url: str, keyspace: Keyspace) -> str | None:
    """Return why this server cannot hold the cell's queue; empty if it can, None if it does not answer now. The first cell keeps it."""
    with connect(url) as client:
        try:
            version = str(client.info("server").get("redis_version", ""))
            major = version.partition(".")[0]
            if major.isdigit() and int(major) < MIN_REDIS_MAJOR:
                return f"Redis {version} is too old: use Redis or Valkey {MIN_REDIS_MAJOR} or newer"
            name = keyspace.service(CELL)
            number = client.get(name) or client.set(name, keyspace.cell, nx=True, get=True)
        except redis.exceptions.RedisError:
            return None
    if number is None or number == b"%d" % keyspace.cell:
        return ""
    return f"this Redis is that of cell {number[:40].decode(errors='replace')}, and OPSIN_CELL is {keyspace.cell}"


def as_unavailable(error: BaseException) -> RedisUnavailable | None:
    """Return an error by which Redis cannot be used now as the one that the queue knows; None: it is another one."""
    if not isinstance(error, redis.exceptions.RedisError):
        return None
    if message := refusal(error):
        return RedisUnavailable(detail=f"the queue's Redis refuses to work: {message}", refusal=message)
    return RedisUnavailable(cause=str(error)) if isinstance(error, CONNECTION_ERRORS) else None


@dataclass(frozen=True)
class RedisTarget:
    """A plain URL of Redis, or the Sentinels that know it."""

    url: str
    sentinels: tuple[tuple[str, int], ...] = ()
    master: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None
    options: tuple[tuple[str, str], ...] = ()


def parse(url: str) -> RedisTarget:
    """Parse a URL. Raises ValueError with a sentence about what is wrong with it."""
    scheme, public_url = url.partition("://")[0], without_secrets(url)
    if scheme not in SCHEMES:
        raise ValueError(f"Redis URL {public_url!r}: must start with one of {', '.join(f'{name}://' for name in SCHEMES)}")
    try:
        parts = urlsplit(url)
    except ValueError:  # the reason repeats what may be a password
        raise ValueError(f"Redis URL {public_url!r}: {URL_ESCAPING_HINT}") from None
    for name in FORBIDDEN_OPTIONS.intersection(parse_qs(parts.query)):
        raise ValueError(f"Redis URL {public_url!r}: {name} cannot be chosen; answers are read as bytes of RESP2")
    if scheme != "redis+sentinel":
        if scheme == "unix" and not parts.path:
            raise ValueError(f"Redis URL {public_url!r}: names no socket; write unix:///run/valkey.sock")
        if scheme != "unix" and not parts.path.removeprefix("/").isdecimal() and parts.path not in ("", "/"):  # redis-py would take 0
            hint = URL_ESCAPING_HINT if "@" in parts.path else "what follows the host is the number of a database, such as /0"
            raise ValueError(f"Redis URL {public_url!r}: {hint}")
        try:
            redis.ConnectionPool.from_url(url).make_connection()
        except TypeError as error:
            raise ValueError(f"Redis URL {public_url!r}: an option is unknown ({error})") from error
        except (ValueError, redis.exceptions.RedisError) as error:
            if "@" in url:
                raise ValueError(f"Redis URL {public_url!r}: {URL_ESCAPING_HINT}") from None
            raise ValueError(f"Redis URL {public_url!r}: {error}") from error
        return RedisTarget(url=url)

    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    master, _, db = parts.path.strip("/").partition("/")
    if not hosts or not master or not (db or "0").isdecimal():
        raise ValueError(f"Redis URL {public_url!r}: write redis+sentinel://host:port,host:port/MASTER/db")
    return RedisTarget(
        url=url,
        sentinels=tuple(_address(public_url, host) for host in hosts.split(",")),
        master=unquote(master),
        db=int(db or 0),
        username=unquote(username) or None,
        password=unquote(password) or None,
        options=tuple((name, values[0]) for name, values in parse_qs(parts.query).items()),
    )


def connect(url: str, *, blocking: float = 0.0) -> redis.Redis:
    """Return a thread-safe client, which connects at the first command. `blocking`: its longest blocking read, seconds."""
    client: redis.Redis = _client(url, blocking, redis.Redis, Sentinel, Retry(NoBackoff(), 0))
    return client


def connect_async(url: str) -> redis.asyncio.Redis:
    """Return a client for one event loop."""
    client: redis.asyncio.Redis = _client(url, 0.0, redis.asyncio.Redis, AsyncSentinel, AsyncRetry(NoBackoff(), 0))
    return client


def _client(url: str, blocking: float, kind: Any, sentinel: Any, retry: Any) -> Any:
    target = parse(url)
    options = {"protocol": 2, "socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_timeout": ANSWER_TIMEOUT_S + blocking, "retry": retry}
    if not target.sentinels:
        return kind.from_url(target.url, **options)
    # Sentinels have passwords of their own: `?sentinel_username=…&sentinel_password=…`
    to_sentinels = options | {"socket_connect_timeout": SENTINEL_TIMEOUT_S, "socket_timeout": SENTINEL_TIMEOUT_S}
    to_master: dict[str, Any] = {"db": target.db, "username": target.username, "password": target.password}
    for name, value in target.options:
        (to_sentinels if name.startswith("sentinel_") else to_master)[name.removeprefix("sentinel_")] = value
    return sentinel(target.sentinels, sentinel_kwargs=to_sentinels, **options).master_for(target.master, **to_master)


def without_secrets(url: str) -> str:
    """Return the URL as messages may show it: if it may hold a password, without options and what stands before an `@`."""
    if "@" not in url and "pass" not in url.lower():
        return url
    scheme, separator, rest = url.partition("://")
    address, _, options = rest.partition("?")
    if "@" in options or not separator:
        return f"{scheme}://***" if separator else "***"
    return f"{scheme}://{'***@' if '@' in address else ''}{address.rpartition('@')[2]}"


def _address(public_url: str, host: str) -> tuple[str, int]:
    name, colon, port = host.rpartition(":")
    if not colon:
        return host, SENTINEL_PORT
    if not name or not port.isdecimal():
        raise ValueError(f"Redis URL {public_url!r}: one of its addresses is not host:port")
    return name.strip("[]"), int(port)


class FirstContact:
    """A log, every ten seconds until the first success, of the address that was tried, how often and for how long.

    A wrong address looks like a server that starts late.
    """

    def __init__(self, url: str) -> None:
        self._address = without_secrets(url)
        self._tries = 0
        self._started = self._logged = time.monotonic()
        self._is_reached = False

    def log_failure(self, reason: RedisUnavailable) -> None:
        self._tries += 1
        now = time.monotonic()
        if not self._is_reached and now - self._logged >= LOG_EVERY_S:
            self._logged = now
            waited = now - self._started
            log.warning("still waiting for Redis at %s: %d tries in %.0f s; the last one: %s", self._address, self._tries, waited, reason)

    def mark_reached(self) -> None:
        self._is_reached = True


def survives(error: BaseException) -> bool:
    """Return whether a connection can be used after an error: it was an answer, and not that of a former master."""
    return isinstance(error, redis.exceptions.ResponseError) and not isinstance(error, redis.exceptions.ReadOnlyError)
