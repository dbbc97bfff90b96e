"""Outbound HTTP to hosts that clients name, for images and webhooks, with an allowlist against server-side request forgery.

A host must be listed, and each of its addresses must belong to the public internet or to a listed network: clients could otherwise reach
hosts that only the gateway can. A name is resolved once, and connections go to the addresses that were checked."""

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

from server.http.url_allowlist import AddressNotAllowed, Ip, RemoteUrl, embedded_ipv4, host_and_port, is_public, parse_remote_url

READ_CHUNK_BYTES = 4096
"""Size of a read: a host that sends heads, or chunks of one byte, without end must not keep the event loop from other requests."""
MAX_HEAD_BYTES = 2**16
"""Maximum size of a response's head, with the informational responses before it."""
Resolve = Callable[[str, int], Awaitable[Sequence[Ip]]]

MAX_CONCURRENT_LOOKUPS = 8
"""Maximum number of names that are resolved at once, each in a thread: a name server that does not answer holds no other one."""
MAX_ADDRESSES_TRIED = 2
CONNECT_TIMEOUT_S = 3.0
"""Timeout in seconds for each address, so that one that never answers leaves time for the next."""


class OutboundClient:
    """A client with an allowlist, for one event loop. It ignores proxies of the environment. Certificates are checked against the name,
    with the system's authorities or those of SSL_CERT_FILE."""

    def __init__(
        self, hosts: Iterable[str], networks: Iterable[str], resolve: Resolve | None = None, connect: float = CONNECT_TIMEOUT_S
    ) -> None:
        """hosts: `host` or `host:port`. networks: allowed in addition to the public internet. connect: timeout in seconds of an address."""
        self._hosts = frozenset(map(host_and_port, hosts))
        self._names = asyncio.Semaphore(MAX_CONCURRENT_LOOKUPS)
        listed = tuple(ip_network(network, strict=False) for network in networks)
        backend = _AllowlistBackend(resolve or self._resolve, listed, connect)
        trusted = ssl.create_default_context()
        self._pool = httpcore2.AsyncConnectionPool(trusted, max_connections=None, max_keepalive_connections=0, network_backend=backend)

    def parse(self, url: str) -> RemoteUrl:
        """Parse a URL. Raises AddressNotAllowed if it is not an https URL of a listed host."""
        return parse_remote_url(url, self._hosts)

    @asynccontextmanager
    async def request(
        self, method: str, remote: RemoteUrl, headers: Mapping[str, str], content: bytes | None = None
    ) -> AsyncIterator[httpcore2.Response]:
        """Send a request; the body of the response can be streamed. Follows no redirect. Raises AddressNotAllowed, CONNECTION_ERRORS."""
        url = httpcore2.URL(scheme=b"https", host=remote.host.encode(), port=remote.port, target=remote.target.encode())
        sent_headers = {"Host": remote.authority, "User-Agent": "opsin", "Accept-Encoding": "identity", **headers}
        if content is not None:
            sent_headers["Content-Length"] = str(len(content))
        async with self._pool.stream(method, url, headers=list(sent_headers.items()), content=content) as response:
            counting_stream(response).max_bytes = None
            yield response

    async def close(self) -> None:
        await self._pool.aclose()

    async def _resolve(self, host: str, port: int) -> Sequence[Ip]:
        """Resolve a name in a daemon thread: a process that ends need not wait for a name server. Raises OSError."""
        await self._names.acquire()
        loop, resolved = asyncio.get_running_loop(), asyncio.Future[Sequence[Ip]]()

        def finish(addresses: Sequence[Ip], error: OSError | None) -> None:
            self._names.release()
            if resolved.done():  # the waiting task was cancelled
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
                loop.call_soon_threadsafe(finish, addresses, failure)

        threading.Thread(target=resolve, name="resolve", daemon=True).start()
        return await resolved


class CountingStream(httpcore2.AsyncNetworkStream):
    """A network stream that is read in small pieces and counts their bytes."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self.nbytes = 0
        """Number of bytes received, after decryption."""
        self.max_bytes: int | None = MAX_HEAD_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read a piece. Raises ReadError if the head is too long."""
        piece = await self._stream.read(min(max_bytes, READ_CHUNK_BYTES), timeout)
        self.nbytes += len(piece)
        if self.max_bytes is not None and self.nbytes > self.max_bytes:
            raise httpcore2.ReadError(f"no response body after {self.max_bytes} bytes")
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        return CountingStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def counting_stream(response: httpcore2.Response) -> CountingStream:
    """Return the stream that a response is read from."""
    stream: CountingStream = response.extensions["network_stream"]
    return stream


CONNECTION_ERRORS = (OSError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, TimeoutError)
"""Errors of requests that were allowed."""


class _AllowlistBackend(httpcore2.AnyIOBackend):
    """A backend that resolves a name once and connects only if all of its addresses are allowed."""

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
            if not self._is_allowed(address):
                raise AddressNotAllowed(f"{host} has the address {address}, which is neither public nor of a listed network")
        failure: Exception = OSError(f"{host} has no address")
        for address in addresses[:MAX_ADDRESSES_TRIED]:
            try:
                return CountingStream(await super().connect_tcp(str(address), port, self._connect, *arguments, **options))
            except (OSError, httpcore2.NetworkError, httpcore2.TimeoutException) as error:
                failure = error
        raise failure

    def _is_allowed(self, address: Ip) -> bool:
        inner = embedded_ipv4(address)
        return is_public(inner) or any(inner in network for network in self._networks)
