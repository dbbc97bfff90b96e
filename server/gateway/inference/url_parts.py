"""Parts that a request names by URL, fetched before its work is queued."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urljoin

import httpcore2

from server.concurrency import ClientBound
from server.gateway.inference.stages import item_field
from server.http.outbound import CONNECTION_ERRORS, MAX_HEAD_BYTES, OutboundClient, counting_stream
from server.http.problems import Problem, ProblemKind
from server.http.url_allowlist import AddressNotAllowed, RemoteUrl
from server.queue.gateway.reservations import Reservation
from server.telemetry import logs

MAX_FETCHES = 8
MAX_PER_CLIENT = 2
"""Maximum number of fetches of one client, so that its slow hosts delay no other client."""
TIMEOUT_S = 10.0
REDIRECTS = 3
MOVED = frozenset({301, 302, 303, 307, 308})
REFUSED = "nothing was fetched: send an https URL of a host that OPSIN_FETCH_HOSTS lists, answers within 10 s and has a valid certificate"
"""The only reason that is given until the host answers: another one would reveal to strangers what is behind a name."""

log = logs.get(__name__)


class _FetchError(Exception):
    """A failure after the host was reached."""


@dataclass
class _FetchedBytes:
    """Number of bytes of one request, which count as bytes of its body."""

    reservation: Reservation
    limit: int
    nbytes: int
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def add(self, nbytes: int, field_name: str) -> None:
        """Count bytes of a field. Raises Problem (413), and Refused if there is no room."""
        self.nbytes += nbytes
        if self.nbytes > self.limit:
            raise Problem(ProblemKind.TOO_LARGE, f"what is fetched is longer than {self.limit} bytes (OPSIN_MAX_BODY_BYTES)", field_name)
        async with self.lock:  # the reservation is set to the sum
            await self.reservation.resize(self.reservation.items, self.nbytes)


class PartFetcher:
    """Fetches parts of requests, in one event loop."""

    def __init__(self, outbound: OutboundClient, max_body_bytes: int) -> None:
        self._outbound = outbound
        self._limit = max_body_bytes
        self._running = ClientBound(MAX_FETCHES, MAX_PER_CLIENT)
        self.close = outbound.close

    async def fetch(self, urls_by_part: Mapping[str, Sequence[str]], reservation: Reservation, client: str) -> dict[str, list[bytes]]:
        """Return the contents of parts that are named by URL, clients in turn. Raises Problem: 413, 422 `fetch-failed`; and Refused."""
        received, contents = _FetchedBytes(reservation, self._limit, reservation.nbytes), dict[str, list[bytes]]()
        for part, urls in urls_by_part.items():
            names = [item_field(f"{part}_url", index, len(urls)) for index in range(len(urls))]
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._fetch_in_turn(client, url, name, received)) for url, name in zip(urls, names, strict=True)
                    ]
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            contents[part] = [task.result() for task in tasks]
        return contents

    async def _fetch_in_turn(self, client: str, url: str, field_name: str, received: _FetchedBytes) -> bytes:
        await self._running.enter(client, 1)
        try:
            return await self._fetch(url, field_name, received)
        finally:
            self._running.give(client, 1)

    async def _fetch(self, url: str, field_name: str, received: _FetchedBytes) -> bytes:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._follow(url, field_name, received)
        except _FetchError as failed:
            raise Problem(ProblemKind.FETCH_FAILED, str(failed), field_name) from None
        except (AddressNotAllowed, *CONNECTION_ERRORS) as error:
            log.info("fetch failed", field=field_name, reason=str(error) or type(error).__name__)
            raise Problem(ProblemKind.FETCH_FAILED, REFUSED, field_name) from None

    async def _follow(self, url: str, field_name: str, received: _FetchedBytes) -> bytes:
        for _ in range(REDIRECTS + 1):
            remote = self._outbound.parse(url)
            async with self._request(remote) as response:
                if response.status not in MOVED:
                    return await self._read(response, field_name, received)
                headers = {name.lower(): value for name, value in response.headers}
                url = _join(url, headers.get(b"location", b"").decode("latin-1"))
        raise _FetchError(f"more than {REDIRECTS} redirects")

    @asynccontextmanager
    async def _request(self, remote: RemoteUrl) -> AsyncIterator[httpcore2.Response]:
        async with self._outbound.request("GET", remote, {"Accept": "*/*"}) as response:
            try:
                yield response
            except CONNECTION_ERRORS as error:
                raise _FetchError(f"the host answered {response.status} and broke off") from error

    async def _read(self, response: httpcore2.Response, field_name: str, received: _FetchedBytes) -> bytes:
        if response.status != 200:
            raise _FetchError(f"the host answered {response.status}")
        encodings = [value.lower() for name, value in response.headers if name.lower() == b"content-encoding"]
        if any(encoding != b"identity" for encoding in encodings):
            raise _FetchError("the host sent the bytes with a Content-Encoding that was not asked for")
        content, connection = bytearray(), counting_stream(response)
        async for piece in response.aiter_stream():
            await received.add(len(piece), field_name)
            content += piece
            if connection.nbytes > 2 * len(content) + MAX_HEAD_BYTES:
                raise _FetchError("the host sent more about its bytes than bytes: chunks of one, perhaps")
        if not content:
            raise _FetchError("the host answered 200 without a byte")
        return bytes(content)


def _join(url: str, location: str) -> str:
    """Return the URL of a redirect. Raises NotAllowed."""
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise AddressNotAllowed(f"a redirect to what is not a URL: {error}") from None
