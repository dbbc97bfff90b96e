"""Checks of a request's head that the HTTP parser leaves to us: where the body ends, and which host is meant (RFC 9112, 3.2 and 6.1)."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from functools import lru_cache

from server.http.problems import Problem, ProblemKind

_NAME = rb"[A-Za-z0-9._~!$&'()*+,;=-]*"
_IPV6 = rb"\[(?P<ipv6>[0-9A-Fa-f:.]+)(?:%[A-Za-z0-9._~-]+)?\]"
_PORT = rb"(?::0*(?P<port>[0-9]{0,5}))?"
_HOST = re.compile(rb"(?:" + _IPV6 + rb"|" + _NAME + rb"(?:%[0-9A-Fa-f]{2}" + _NAME + rb")*)" + _PORT)
_ABSOLUTE = re.compile(rb"https?://(?P<authority>[^/?#]+)(?P<path>[^#]*)", re.IGNORECASE)


def check_coding(codings: Sequence[bytes], version: str) -> None:
    """codings: values of Transfer-Encoding. Raises Problem: the body could end elsewhere for a proxy than for us."""
    if version == "1.0":
        raise Problem(ProblemKind.INVALID_REQUEST, "HTTP/1.0 has no Transfer-Encoding: send Content-Length", "Transfer-Encoding")
    names = b",".join(codings).lower()
    if names.strip(b" \t") == b"chunked":
        return
    if {name.strip(b" \t") for name in names.split(b",")} <= {b"chunked", b""}:
        raise Problem(ProblemKind.INVALID_REQUEST, "send `chunked` once", "Transfer-Encoding")
    raise Problem(ProblemKind.NOT_OFFERED, "only `chunked` is decoded here", "Transfer-Encoding")


def check_host(hosts: Sequence[bytes], version: str) -> None:
    """hosts: values of Host. Raises Problem."""
    if len(hosts) > 1 or (not hosts and version != "1.0"):
        raise Problem(ProblemKind.INVALID_REQUEST, f"{len(hosts)} Host headers: a request of HTTP/1.1 has one", "Host")
    if hosts and not _is_host(hosts[0]):
        raise Problem(ProblemKind.INVALID_REQUEST, "neither a host nor host:port", "Host")


def split_absolute(url: bytes) -> tuple[bytes, bytes]:
    """Host, and path with query, of a request target such as `http://host/path`. Raises Problem."""
    parts = _ABSOLUTE.fullmatch(url)
    if parts is None or not _is_host(parts["authority"]):
        raise Problem(ProblemKind.INVALID_REQUEST, "the request target is neither a path nor http://host/path")
    path = parts["path"]
    return parts["authority"], path if path.startswith(b"/") else b"/" + path


@lru_cache(maxsize=64)  # clients name the same few
def _is_host(text: bytes) -> bool:
    parts = _HOST.fullmatch(text)
    if parts is None or int(parts["port"] or 0) > 0xFFFF:
        return False
    if parts["ipv6"] is not None:
        try:
            socket.inet_pton(socket.AF_INET6, parts["ipv6"].decode())
        except OSError:
            return False
    return True
