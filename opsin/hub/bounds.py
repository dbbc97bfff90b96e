"""Bounds on what a hub may answer. `huggingface_hub` takes names and bodies as they come: an ETag becomes the name of a file, and a body
without end fills the memory or the disk."""

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
"""The error of the library that huggingface_hub asks with, which is not the same in all its versions."""
LIBRARY = import_module(HTTPError.__module__.partition(".")[0])
NAMES = ("etag", "x-linked-etag", "x-repo-commit")
"""Headers that become names in the cache."""
PACKED = 64
"""Factor by which a body that is compressed may have fewer bytes: it grows when it is read, by 1,000 at most."""
PASSWORD = re.compile(r"(?<=://)[^/\s@]*@")
_most: ContextVar[int | None] = ContextVar("most", default=None)


class Refused(Exception):
    """An answer is none that a hub gives; the message says why."""


class _Limited(LIBRARY.SyncByteStream):  # type: ignore[misc, name-defined]
    """A body, of which at most so many bytes are read."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream, self._most = stream, most

    def __iter__(self) -> Iterator[bytes]:
        read = 0
        for chunk in self._stream:
            read += len(chunk)
            if read > self._most:
                raise _too_large(self._most)
            yield chunk

    def close(self) -> None:
        self._stream.close()


@contextmanager
def bounded(most: int | None) -> Iterator[None]:
    """Raise Refused for longer bodies, and for names that lead out of the cache. most: bytes; None: any number."""
    session = get_session()
    session.timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT  # seconds; the library's own clients wait for ever
    hooks = session.event_hooks
    if _check not in hooks["response"]:
        session.event_hooks = {**hooks, "response": [*hooks["response"], _check]}
    token = _most.set(most)
    try:
        yield
    finally:
        _most.reset(token)


def without_password(text: str) -> str:
    """A text whose URLs have lost the part before `@`."""
    return PASSWORD.sub("", text)


def _check(response: Any) -> None:
    for name in NAMES:
        value = response.headers.get(name)
        if value is not None and _leads_out(value):
            raise Refused(f"the header {name} is none of a hub ({value[:80]!r}): check HF_ENDPOINT")
    most = _most.get()
    if most is None or response.request.method == "HEAD":
        return
    if response.headers.get("content-encoding", "identity") != "identity":
        most //= PACKED
    if int(response.headers.get("content-length", 0)) > most:
        raise _too_large(most)
    response.stream = _Limited(response.stream, most)


def _leads_out(value: str) -> bool:
    """Whether a name in the cache would be an absolute path, or one with `..`. Other slashes are usual in the ETag of what is no file."""
    name = value.lstrip("W/").strip('"')
    return name.startswith("/") or ".." in re.split(r"[/\\]", name)


def _too_large(most: int) -> Refused:
    return Refused(f"it is larger than {most >> 20} MiB, and nothing but weights of that size is read")
