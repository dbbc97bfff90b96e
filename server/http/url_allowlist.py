"""Addresses that a gateway may dial because a client has named them, and those that it may not."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from urllib.parse import urlsplit

Ip = IPv4Address | IPv6Address

HTTPS = 443
LONGEST = 2048
"""Characters of a URL."""
UNICAST = IPv6Network("2000::/3")
"""IPv6 addresses of the public internet (RFC 4291, section 2.4); the others are none, or hold one of IPv4."""
NAT64 = IPv6Network("64:ff9b::/96")
"""It holds an IPv4 address in its last 32 bits (RFC 6052)."""
UNKNOWN = tuple(map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20")))
"""Networks that are not public either, by IANA's registries of special addresses, whatever a version of Python knows of them."""
_VISIBLE = re.compile(rf"[!-\[\]-~]{{1,{LONGEST}}}")
"""ASCII without blanks and backslashes, of which parsers think differently."""
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|[0-9a-f:.]+:[0-9a-f:.]*")


class NotAllowed(Exception):
    """The address is not one that may be dialled. Says why, for the log. Clients may be told what `read` says of the URL that they have
    sent, but neither of a redirect nor of what a name leads to: they could scan a network."""


@dataclass(frozen=True)
class RemoteUrl:
    """A URL, read."""

    host: str
    port: int
    target: str
    """Path and query."""

    @property
    def authority(self) -> str:
        """For the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == HTTPS else f"{host}:{self.port}"


def host_and_port(listed: str) -> tuple[str, int]:
    """`host` or `host:port`; 443 unless it says otherwise. Raises ValueError."""
    parts = urlsplit(f"//{listed}")
    host, port = (parts.hostname or "").lower(), parts.port or HTTPS
    shown = f"[{host}]" if ":" in host else host
    if listed.lower() not in (shown, f"{shown}:{port}") or not _HOST.fullmatch(host):
        raise ValueError(f"{listed!r} is neither a host nor host:port")
    return host, port


def read(url: str, hosts: Collection[tuple[str, int]]) -> RemoteUrl:
    """Raises NotAllowed for what is no https URL of one of the hosts."""
    if not _VISIBLE.fullmatch(url):
        raise NotAllowed(f"not a URL of at most {LONGEST} visible ASCII characters")
    try:
        parts = urlsplit(url)
        remote = RemoteUrl(*host_and_port(parts.netloc), (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    except ValueError:  # the reason repeats what may be a password
        raise NotAllowed("neither https://host/… nor https://host:port/…") from None
    if parts.scheme != "https":
        raise NotAllowed(f"the scheme {parts.scheme!r} is not https")
    if (remote.host, remote.port) not in hosts:
        raise NotAllowed(f"{remote.authority} is not listed")
    return remote


def is_public(address: Ip) -> bool:
    """Whether an address that `unwrapped` gives is one of the public internet."""
    if isinstance(address, IPv6Address) and address not in UNICAST:
        return False
    special = address.is_multicast or address.is_reserved or any(address in network for network in UNKNOWN)
    return address.is_global and not special


def unwrapped(address: Ip) -> Ip:
    """The IPv4 address that one of IPv6 stands for: mapped, of NAT64 or of 6to4; any other as it is."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address
