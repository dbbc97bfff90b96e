"""Bounds on the answers of a hub. `huggingface_hub` trusts names and bodies: an ETag becomes the name of a file, and an endless body fills
the memory or the disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError

HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
"""The base error of huggingface_hub's HTTP library, which differs between its versions."""
HTTP_LIBRARY = import_module(HTTPError.__module__.partition(".")[0])
NAME_HEADERS = ("etag", "x-linked-etag", "x-repo-commit")
"""Headers that become names of files in the cache."""
COMPRESSION_FACTOR = 64
"""Factor by which the limit is lower for compressed bodies, which grow up to 1,000 times when they are read."""
CREDENTIALS = re.compile(r"(?<=://)[^/\s@]*@")
_max_bytes: ContextVar[int | None] = ContextVar("most", default=None)


class HubResponseError(Exception):
    """The answer is not one of a hub; the message says why."""


class _LimitedStream(HTTP_LIBRARY.SyncByteStream):  # type: ignore[misc, name-defined]
    """A body whose size is limited: reading more bytes raises HubResponseError."""

    def __init__(self, stream: Any, max_bytes: int) -> None:
        self._stream, self._max_bytes = stream, max_bytes

    def __iter__(self) -> Iterator[bytes]:
        read = 0
        for chunk in self._stream:
            read += len(chunk)
            if read > self._max_bytes:
                raise _too_large(self._max_bytes)
            yield chunk

    def close(self) -> None:
        self._stream.close()


@contextmanager
def limit_body(max_bytes: int | None) -> Iterator[None]:
    """Raise HubResponseError inside the block for larger bodies, and for names that lead out of the cache. max_bytes: None for no limit."""
    session = get_session()
    session.timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT  # seconds; by default the library waits for ever
    hooks = session.event_hooks
    if _check not in hooks["response"]:
        session.event_hooks = {**hooks, "response": [*hooks["response"], _check]}
    token = _max_bytes.set(max_bytes)
    try:
        yield
    finally:
        _max_bytes.reset(token)


def without_password(text: str) -> str:
    """Return a text without the user names and passwords of its URLs."""
    return CREDENTIALS.sub("", text)


def _check(response: Any) -> None:
    for name in NAME_HEADERS:
        value = response.headers.get(name)
        if value is not None and _leads_out(value):
            raise HubResponseError(f"the header {name} does not come from a hub ({value[:80]!r}): check HF_ENDPOINT")
    max_bytes = _max_bytes.get()
    if max_bytes is None or response.request.method == "HEAD":
        return
    if response.headers.get("content-encoding", "identity") != "identity":
        max_bytes //= COMPRESSION_FACTOR
    if int(response.headers.get("content-length", 0)) > max_bytes:
        raise _too_large(max_bytes)
    response.stream = _LimitedStream(response.stream, max_bytes)


def _leads_out(value: str) -> bool:
    """Return whether a name in the cache would be an absolute path or contain `..`. Other slashes are usual in ETags of JSON answers."""
    name = value.lstrip("W/").strip('"')
    return name.startswith("/") or ".." in re.split(r"[/\\]", name)


def _too_large(max_bytes: int) -> HubResponseError:
    return HubResponseError(f"it is larger than {max_bytes >> 20} MiB; only weights may be larger")
