"""Clients, told apart by address as far as that can be known."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
IPV6_PREFIX = 64
"""One subscriber has a network of this size: any of its addresses is as good as another."""


class ClientAddresses:
    """Tells clients apart by address: the connection's, or what trusted proxies wrote into X-Forwarded-For."""

    def __init__(self, trusted_proxies: Sequence[str]) -> None:
        self._trusted: list[IPv4Network | IPv6Network] = [ip_network(proxy, strict=False) for proxy in trusted_proxies]

    def find(self, host: str, forwarded: Sequence[str]) -> str:
        """Return one name for one client; empty for a Unix socket.

        host: of the connection. forwarded: values of X-Forwarded-For."""
        if not self._trusted:
            return subscriber(host)
        hops = [hop for value in forwarded for hop in value.split(",")]
        nearest = _parse(host)
        while nearest is not None and self._trusts(nearest) and hops:
            farther = _parse(hops.pop())
            if farther is None:
                break  # what stands before it cannot be believed either
            nearest = farther
        return _network(nearest, host)

    def is_proxy(self, host: str) -> bool:
        address = _parse(host)
        return address is not None and self._trusts(address)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


@lru_cache(maxsize=1024)
def owner_of(client: str) -> str:
    """The client's name in the queue, in place of the address; empty for an empty one, which is nobody in particular."""
    return hashlib.blake2b(client.encode(), digest_size=8).hexdigest() if client else ""


@lru_cache(maxsize=1024)
def subscriber(host: str) -> str:
    """The subscriber behind a connection's address."""
    return _network(_parse(host), host)


def _parse(text: str) -> Address | None:
    """An address as it stands in headers: with or without port, IPv6 in brackets where there is one."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _network(address: Address | None, host: str) -> str:
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, IPV6_PREFIX), strict=False))
    return host if address is None else str(address)
