"""Connections to Redis or Valkey from one URL, and the commands that every request pays for.

`redis://`, `rediss://` and `unix://` are redis-py's own, with its query options (`?ssl_ca_certs=/path`); `redis+sentinel://` is Opsin's.
redis-py's defaults are changed where they hurt: RESP2 (one shape of replies), no silent retries (a repeated read loses what the first one
was given), and a socket timeout that outlasts the longest blocking read but still notices a half-open connection.

redis-py's client spends several times the cost of a command on pools, retries, deprecations and observation. So frequent commands use its
connections (address, TLS, password, Sentinel, protocol) directly, and get answers as Redis sent them, without per-command callbacks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from server.concurrency import Deadline, TimerWheel
from server.queue.errors import RedisUnavailable
from server.queue.keys import Keyspace
from server.queue.script import ArgsT, ResultT, Script

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
LARGE_ARGUMENT_BYTES = 16 * 1024
"""A command with larger arguments is joined here: hiredis takes 180 µs for an image of 150 KB, this 7."""
INCOMPLETE = object()
"""Value that a reader returns while an answer is incomplete."""
CHUNK_BYTES = 256 * 1024
"""Also the largest argument that a script is given: Redis stands still while it reads one."""
VALUE_TTL_MS = 120_000
"""Time to live of a value after its last chunk: an output is read at once or never, a message is taken over by the queue."""


def refusal(error: BaseException) -> str:
    """Return what the server said, if it answered and refuses to work for now; else an empty string."""
    message = str(error)
    is_refusal = message.partition(" ")[0] in REFUSAL_CODES or message.startswith(REFUSED_SCRIPTS)
    return message if is_refusal or isinstance(error, UNAVAILABLE_ERRORS) else ""


def unsuitable(url: str) -> str:
    """Return why this server cannot hold the queue; empty if it can, or if it does not answer now."""
    with connect(url) as client:
        try:
            version = str(client.info("server").get("redis_version", ""))
        except redis.exceptions.RedisError:
            return ""
    major = version.partition(".")[0]
    return (
        f"Redis {version} is too old: use Redis or Valkey {MIN_REDIS_MAJOR} or newer"
        if major.isdigit() and int(major) < MIN_REDIS_MAJOR
        else ""
    )


def as_unavailable(error: BaseException) -> RedisUnavailable | None:
    """Return an error by which Redis cannot be used now as the one that the queue knows; None: it is another one."""
    if not isinstance(error, redis.exceptions.RedisError):
        return None
    if message := refusal(error):
        return RedisUnavailable(detail=f"the queue's Redis refuses to work: {message}", refusal=message)
    return RedisUnavailable(cause=str(error)) if isinstance(error, CONNECTION_ERRORS) else None


@contextmanager
def redis_errors_as_unavailable() -> Iterator[None]:
    """Raise errors by which Redis cannot be used now as RedisUnavailable."""
    try:
        yield
    except redis.exceptions.RedisError as error:
        if (unavailable := as_unavailable(error)) is not None:
            raise unavailable from error
        raise


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
        if scheme != "unix" and not parts.path.removeprefix("/").isdigit() and parts.path not in ("", "/"):  # redis-py would take 0 for it
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
    if not hosts or not master or not (db or "0").isdigit():
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
    if not name or not port.isdigit():
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


class RespPool:
    """Connections of one event loop, each for one command at a time. A caller must not be cancelled in mid-command."""

    def __init__(self, client: Any, keyspace: Keyspace) -> None:
        self.keyspace = keyspace
        self._pool = client.connection_pool
        self._idle: list[_RespConnection] = []
        self._busy: set[_RespConnection] = set()
        self._ticks = TimerWheel()

    async def run(self, script: Script[ArgsT, ResultT], args: ArgsT, messages: Iterable[bytes] = ()) -> ResultT:
        arguments = (1, self.keyspace.name(""), *script.arguments(args, messages))
        try:
            return script.read(await self.command("EVALSHA", script.sha, *arguments))
        except redis.exceptions.NoScriptError:
            return script.read(await self.command("EVAL", script.source, *arguments))

    async def command(self, *arguments: Any, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """Return the answer. `timeout_s`: until the server counts as unavailable."""
        # servers close connections that were idle for long
        while (connection := self._idle.pop() if self._idle else _RespConnection(self._pool)).lost:
            await connection.close()
        self._busy.add(connection)
        try:
            with Deadline(self._ticks, timeout_s):
                if connection.transport is None:
                    await connection.connect()
                answer = await connection.execute(encode_command(arguments))
        except BaseException as error:
            if survives(error):
                self._idle.append(connection)
                raise
            await connection.close()
            await self._drop_idle()
            if isinstance(error, TimeoutError):
                raise redis.exceptions.TimeoutError(f"no answer within {timeout_s:g} s") from error
            raise
        finally:
            self._busy.discard(connection)
        self._idle.append(connection)
        return answer

    async def close(self) -> None:
        for connection in tuple(self._busy):
            await connection.close()
        await self._drop_idle()

    async def _drop_idle(self) -> None:
        """Close the idle ones: what broke one connection has broken the others."""
        while self._idle:
            await self._idle.pop().close()


class _RespConnection(asyncio.Protocol):
    """One connection: redis-py makes it; from then on its bytes come here, without streams and locks around them."""

    def __init__(self, pool: Any) -> None:
        self._connection = pool.connection_class(**pool.connection_kwargs)
        self._connection.socket_timeout = None  # ours counts for the whole command
        self._reader: Any = None
        self._answer: asyncio.Future[Any] | None = None
        self.lost: Exception | None = None
        """Not None: the server has closed it."""
        self.transport: asyncio.Transport | None = None

    async def connect(self) -> None:
        await self._connection.connect()
        parse_error = self._connection._parser.parse_error
        self._reader = hiredis.Reader(protocolError=redis.exceptions.InvalidResponse, replyError=parse_error, notEnoughData=INCOMPLETE)
        transport = self._connection._writer.transport
        transport.set_protocol(self)
        self.transport = transport

    async def execute(self, packed: bytes) -> Any:
        """Return the answer to a command. Raises it if it is an error."""
        if self.lost is not None:
            raise self.lost
        assert self.transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(packed)
        return await self._answer

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            answer = self._reader.gets()
        except redis.exceptions.RedisError as error:
            answer = error
        if answer is INCOMPLETE or self._answer is None or self._answer.done():
            return
        if isinstance(answer, Exception):
            self._answer.set_exception(answer)
        else:
            self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = redis.exceptions.ConnectionError(f"the connection was closed: {error or 'by the server'}")
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self.lost)


def encode_command(arguments: tuple[Any, ...]) -> bytes:
    if not any(isinstance(word, bytes | memoryview) and len(word) > LARGE_ARGUMENT_BYTES for word in arguments):
        packed: bytes = hiredis.pack_command(arguments)
        return packed
    encoded = [memoryview(word if isinstance(word, bytes | memoryview) else str(word).encode()) for word in arguments]
    return b"".join([b"*%d\r\n" % len(encoded), *(part for word in encoded for part in (b"$%d\r\n" % word.nbytes, word, b"\r\n"))])


def survives(error: BaseException) -> bool:
    """Return whether a connection can be used after an error: it was an answer, and not that of a former master."""
    return isinstance(error, redis.exceptions.ResponseError) and not isinstance(error, redis.exceptions.ReadOnlyError)
