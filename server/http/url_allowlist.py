"""URLs and addresses of clients that a gateway may connect to: hosts on its list, and addresses of the public internet."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from urllib.parse import urlsplit

Ip = IPv4Address | IPv6Address

HTTPS = 443
MAX_URL_CHARS = 2048
UNICAST = IPv6Network("2000::/3")
"""IPv6 addresses of the public internet (RFC 4291, section 2.4); others are not public, or embed an IPv4 address."""
NAT64 = IPv6Network("64:ff9b::/96")
"""Addresses with an IPv4 address in their last 32 bits (RFC 6052)."""
NON_PUBLIC_NETWORKS = tuple(map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20")))
"""Further networks that are not public by IANA's registries of special addresses; not every version of Python knows them."""
_VISIBLE = re.compile(rf"[!-\[\]-~]{{1,{MAX_URL_CHARS}}}")
"""ASCII without blanks and backslashes, which parsers read differently."""
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|[0-9a-f:.]+:[0-9a-f:.]*")


class AddressNotAllowed(Exception):
    """A URL or an address that is not on the allowlist, with the reason. Clients may see the reason for a URL that they have sent, but
    not for a redirect or for the addresses of a name: they could scan a network."""


@dataclass(frozen=True)
class RemoteUrl:
    """A parsed https URL."""

    host: str
    port: int
    target: str
    """Path and query."""

    @property
    def authority(self) -> str:
        """Value of the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == HTTPS else f"{host}:{self.port}"


def host_and_port(listed: str) -> tuple[str, int]:
    """Parse `host` or `host:port`; the default port is 443. Raises ValueError."""
    parts = urlsplit(f"//{listed}")
    host, port = (parts.hostname or "").lower(), parts.port or HTTPS
    bracketed = f"[{host}]" if ":" in host else host
    if listed.lower() not in (bracketed, f"{bracketed}:{port}") or not _HOST.fullmatch(host):
        raise ValueError(f"{listed!r} is neither a host nor host:port")
    return host, port


def parse_remote_url(url: str, hosts: Collection[tuple[str, int]]) -> RemoteUrl:
    """Parse a URL. Raises AddressNotAllowed if it is not an https URL of one of the hosts."""
    if not _VISIBLE.fullmatch(url):
        raise AddressNotAllowed(f"not a URL of at most {MAX_URL_CHARS} visible ASCII characters")
    try:
        parts = urlsplit(url)
        remote = RemoteUrl(*host_and_port(parts.netloc), (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    except ValueError:  # the reason could repeat a password
        raise AddressNotAllowed("neither https://host/… nor https://host:port/…") from None
    if parts.scheme != "https":
        raise AddressNotAllowed(f"the scheme {parts.scheme!r} is not https")
    if (remote.host, remote.port) not in hosts:
        raise AddressNotAllowed(f"{remote.authority} is not listed")
    return remote


def is_public(address: Ip) -> bool:
    """Return whether an address, of which `embedded_ipv4` was taken, belongs to the public internet."""
    if isinstance(address, IPv6Address) and address not in UNICAST:
        return False
    special = address.is_multicast or address.is_reserved or any(address in network for network in NON_PUBLIC_NETWORKS)
    return address.is_global and not special


def embedded_ipv4(address: Ip) -> Ip:
    """Return the IPv4 address that an IPv6 address embeds (mapped, NAT64 or 6to4); any other address unchanged."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address
