"""Errors that are kept or handed on as values: without the frames that they came through, whose variables may be large."""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=BaseException)


def without_frames(error: E) -> E:
    """The error, and what led to it, without tracebacks. Who returns an error of its own is in a cycle with it: all that it holds would
    stay until a garbage collection."""
    chain: list[BaseException] = [error]
    for link in chain:
        link.__traceback__ = None
        chain += [other for other in (link.__cause__, link.__context__) if other is not None and other.__traceback__ is not None]
    return error
