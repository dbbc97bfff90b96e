"""Parts that a request names by URL, fetched before its work is queued."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urljoin

import httpcore2

from server.concurrency.client_bound import ClientBound
from server.gateway.inference.body import Submission, item_field
from server.http.outbound import FAILURES, HEAD_BYTES, Dialler, connection_of
from server.http.problems import Kind, Problem
from server.http.url_allowlist import NotAllowed, RemoteUrl
from server.queue.gateway.reservations import Reservation
from server.telemetry import logs

AT_ONCE = 8
OF_ONE_CLIENT = 2
"""So that many slow hosts of one hold up nobody else."""
SECONDS = 10.0
REDIRECTS = 3
MOVED = frozenset({301, 302, 303, 307, 308})
REFUSED = "nothing was fetched: send an https URL of a host that OPSIN_FETCH_HOSTS lists, answers within 10 s and has a valid certificate"
"""One sentence for whatever goes wrong before the host answers: another one would tell a stranger what is behind a name."""

log = logs.get(__name__)


class _Failed(Exception):
    """The host was reached, and this is what came of it."""


@dataclass
class _Received:
    """Bytes of one request, which count as those of its body."""

    reservation: Reservation
    limit: int
    nbytes: int
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def add(self, nbytes: int, where: str) -> None:
        """Raises Problem (413), and Refused where there is no room."""
        self.nbytes += nbytes
        if self.nbytes > self.limit:
            raise Problem(Kind.TOO_LARGE, f"what is fetched is longer than {self.limit} bytes (OPSIN_MAX_BODY_BYTES)", where)
        async with self.turn:  # the reservation is told a sum
            await self.reservation.resize(self.reservation.items, self.nbytes)


class Fetcher:
    """For one event loop."""

    def __init__(self, dialler: Dialler, max_body_bytes: int) -> None:
        self._dialler = dialler
        self._limit = max_body_bytes
        self._running = ClientBound(AT_ONCE, OF_ONE_CLIENT)
        self.close = dialler.close

    async def fill(self, submission: Submission, reservation: Reservation, client: str) -> None:
        """Fetch every part that is named by a URL, clients in turn. Raises Problem: 413, 422 `fetch-failed`; and Refused."""
        received = _Received(reservation, self._limit, reservation.nbytes)
        for part, urls in submission.urls.items():
            names = [item_field(f"{part}_url", index, len(urls)) for index in range(len(urls))]
            try:
                async with asyncio.TaskGroup() as group:
                    fetched = [group.create_task(self._in_turn(client, url, name, received)) for url, name in zip(urls, names, strict=True)]
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            for task in fetched:
                submission.add_part(part, task.result())

    async def _in_turn(self, client: str, url: str, where: str, received: _Received) -> bytes:
        await self._running.enter(client, 1)
        try:
            return await self._fetch(url, where, received)
        finally:
            self._running.give(client, 1)

    async def _fetch(self, url: str, where: str, received: _Received) -> bytes:
        try:
            async with asyncio.timeout(SECONDS):
                return await self._follow(url, where, received)
        except _Failed as failed:
            raise Problem(Kind.FETCH_FAILED, str(failed), where) from None
        except (NotAllowed, *FAILURES) as error:
            log.info("fetch failed", field=where, reason=str(error) or type(error).__name__)
            raise Problem(Kind.FETCH_FAILED, REFUSED, where) from None

    async def _follow(self, url: str, where: str, received: _Received) -> bytes:
        for _ in range(REDIRECTS + 1):
            remote = self._dialler.read(url)
            async with self._asked(remote) as response:
                if response.status not in MOVED:
                    return await self._read(response, where, received)
                headers = {name.lower(): value for name, value in response.headers}
                url = _joined(url, headers.get(b"location", b"").decode("latin-1"))
        raise _Failed(f"more than {REDIRECTS} redirects")

    @asynccontextmanager
    async def _asked(self, remote: RemoteUrl) -> AsyncIterator[httpcore2.Response]:
        async with self._dialler.request("GET", remote, {"Accept": "*/*"}) as response:
            try:
                yield response
            except FAILURES as error:
                raise _Failed(f"the host answered {response.status} and broke off") from error

    async def _read(self, response: httpcore2.Response, where: str, received: _Received) -> bytes:
        if response.status != 200:
            raise _Failed(f"the host answered {response.status}")
        encodings = [value.lower() for name, value in response.headers if name.lower() == b"content-encoding"]
        if any(encoding != b"identity" for encoding in encodings):
            raise _Failed("the host sent the bytes with a Content-Encoding that was not asked for")
        content, connection = bytearray(), connection_of(response)
        async for piece in response.aiter_stream():
            await received.add(len(piece), where)
            content += piece
            if connection.nbytes > 2 * len(content) + HEAD_BYTES:
                raise _Failed("the host sent more about its bytes than bytes: chunks of one, perhaps")
        if not content:
            raise _Failed("the host answered 200 without a byte")
        return bytes(content)


def _joined(url: str, location: str) -> str:
    """Raises NotAllowed."""
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise NotAllowed(f"a redirect to what is no URL: {error}") from None
