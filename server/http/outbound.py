"""Requests of a gateway to addresses that its clients name: to fetch an image, to tell that a job has ended.

A name must be listed, and each address of it must be one of the public internet, or of a network that is listed: else clients could reach
what only the gateway can. A name is resolved once, and what was checked is what is dialled."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import httpcore2

from server.http.url_allowlist import Ip, NotAllowed, RemoteUrl, host_and_port, is_public, read, unwrapped

CHUNK_BYTES = 4096
"""Read at once: a host that sends heads or chunks of a byte without end must not keep other requests from the event loop."""
HEAD_BYTES = 2**16
"""An answer may begin with so many, those heads before it included that say it is still to come."""
Resolve = Callable[[str, int], Awaitable[Sequence[Ip]]]

RESOLVERS = 8
"""Names that are resolved at once: a thread each, and a server of names that does not answer holds no other thread."""
DIALLED = 2
"""Addresses of a name that are tried."""
CONNECT_S = 3.0
"""Seconds for each of them: one that never answers leaves time for the next."""


class Dialler:
    """For one event loop. Proxies of the environment do not count; certificates are checked against the name, by the system's authorities
    or those of SSL_CERT_FILE."""

    def __init__(self, hosts: Iterable[str], networks: Iterable[str], resolve: Resolve | None = None, connect: float = CONNECT_S) -> None:
        """hosts: `host` or `host:port`. networks: addresses beside those of the public internet. connect: seconds for an address."""
        self._hosts = frozenset(map(host_and_port, hosts))
        self._names = asyncio.Semaphore(RESOLVERS)
        listed = tuple(ip_network(network, strict=False) for network in networks)
        backend = _Checked(resolve or self._resolve, listed, connect)
        trusted = ssl.create_default_context()
        self._pool = httpcore2.AsyncConnectionPool(trusted, max_connections=None, max_keepalive_connections=0, network_backend=backend)

    def read(self, url: str) -> RemoteUrl:
        """Raises NotAllowed for what is no https URL of a listed host."""
        return read(url, self._hosts)

    @asynccontextmanager
    async def request(
        self, method: str, remote: RemoteUrl, headers: Mapping[str, str], content: bytes | None = None
    ) -> AsyncIterator[httpcore2.Response]:
        """The head of the answer, and its body as it is read. No redirect is followed. Raises NotAllowed, and what `FAILURES` lists."""
        url = httpcore2.URL(scheme=b"https", host=remote.host.encode(), port=remote.port, target=remote.target.encode())
        told = {"Host": remote.authority, "User-Agent": "opsin", "Accept-Encoding": "identity", **headers}
        if content is not None:
            told["Content-Length"] = str(len(content))
        async with self._pool.stream(method, url, headers=list(told.items()), content=content) as response:
            connection_of(response).most = None
            yield response

    async def close(self) -> None:
        await self._pool.aclose()

    async def _resolve(self, host: str, port: int) -> Sequence[Ip]:
        """Raises OSError. In a daemon thread: a process that ends need not wait for a server of names."""
        await self._names.acquire()
        loop, resolved = asyncio.get_running_loop(), asyncio.Future[Sequence[Ip]]()

        def tell(addresses: Sequence[Ip], error: OSError | None) -> None:
            self._names.release()
            if resolved.done():  # nobody waits any more
                return
            resolved.set_result(addresses) if error is None else resolved.set_exception(error)

        def resolve() -> None:
            addresses, failure = list[Ip](), None
            try:
                found = socket.getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM)
                addresses = [ip_address(address[0]) for *_, address in found]
            except OSError as error:
                failure = error
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tell, addresses, failure)

        threading.Thread(target=resolve, name="resolve", daemon=True).start()
        return await resolved


class CountedConnection(httpcore2.AsyncNetworkStream):
    """A connection that is read in small pieces, which are counted."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self.nbytes = 0
        """So many have come, of what was encrypted."""
        self.most: int | None = HEAD_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Raises ReadError for a head that does not end."""
        piece = await self._stream.read(min(max_bytes, CHUNK_BYTES), timeout)
        self.nbytes += len(piece)
        if self.most is not None and self.nbytes > self.most:
            raise httpcore2.ReadError(f"the answer has not begun after {self.most} bytes")
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        return CountedConnection(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def connection_of(response: httpcore2.Response) -> CountedConnection:
    """The connection that a response comes by."""
    stream: CountedConnection = response.extensions["network_stream"]
    return stream


FAILURES = (OSError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, TimeoutError)
"""A request that was allowed may end in one of these."""


class _Checked(httpcore2.AnyIOBackend):
    """Connects to addresses that may be dialled, and to no others, whatever a name says the next time."""

    def __init__(self, resolve: Resolve, networks: Sequence[IPv4Network | IPv6Network], connect: float) -> None:
        super().__init__()
        self._resolve = resolve
        self._networks = networks
        self._connect = connect

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *arguments: Any, **options: Any
    ) -> httpcore2.AsyncNetworkStream:
        addresses = list(dict.fromkeys(await self._resolve(host, port)))
        for address in addresses:
            if not self._may_be_dialled(address):
                raise NotAllowed(f"{host} has the address {address}, which is neither public nor of a listed network")
        failure: Exception = OSError(f"{host} has no address")
        for address in addresses[:DIALLED]:
            try:
                return CountedConnection(await super().connect_tcp(str(address), port, self._connect, *arguments, **options))
            except (OSError, httpcore2.NetworkError, httpcore2.TimeoutException) as error:
                failure = error
        raise failure

    def _may_be_dialled(self, address: Ip) -> bool:
        inner = unwrapped(address)
        return is_public(inner) or any(inner in network for network in self._networks)
