"""Ends a task that waits from outside, with time limits of which thousands share one timer."""

from __future__ import annotations

import asyncio
import time
from math import inf
from types import TracebackType
from typing import Protocol, TypeVar

E = TypeVar("E", bound=BaseException)
TICKS = ((5.0, 20), (60.0, 250), (inf, 1000))
"""Limits of up to so many seconds → the length of their ticks in milliseconds. What is due in the same tick has one timer of the event loop
together: a timer each costs as much as the rest of a limit, and would outlive it by far, as most end long before their time."""


class Interruption:
    """`with Interruption() as waiting:` from then on `waiting.end(reason)` raises `reason` inside the block, at its next await."""

    __slots__ = ("_cancelling", "_reason", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._reason: Exception | None = None

    def begin(self) -> None:
        """From now on the running task can be ended."""
        self._task = task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()

    def end(self, reason: Exception) -> None:
        if self._task is not None and self._reason is None:
            self._reason = reason
            self._task.cancel()

    def over(self, error: BaseException | None) -> BaseException | None:
        """From now on it cannot be ended any more. Returns what really happened: the reason in place of a cancellation that came of it."""
        task, self._task = self._task, None
        reason, self._reason = self._reason, None
        if reason is None or task is None:
            return error
        only_ours = task.uncancel() <= self._cancelling
        return reason if only_ours and isinstance(error, asyncio.CancelledError) else error

    def __enter__(self) -> Interruption:
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        happened = self.over(error)
        if happened is not error and happened is not None:
            try:
                raise happened from None
            finally:
                del happened  # its frames are this one and those that it passes: they would keep each other


class Timed(Protocol):
    def due(self) -> None: ...


class Ticks:
    """Calls what is due, a tick late at most. For one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[int, set[Timed]] = {}
        """By the millisecond of the monotonic clock that ends their tick."""

    def add(self, one: Timed, seconds: float) -> int:
        """Calls `one.due()` in so many seconds. Returns the tick, for `remove`."""
        now_ms = time.monotonic() * 1000
        length = next(length for most, length in TICKS if seconds <= most)
        tick = (int(now_ms + max(seconds, 0.0) * 1000) // length + 1) * length
        waiting = self._waiting.get(tick)
        if waiting is None:
            waiting = self._waiting[tick] = set()
            asyncio.get_running_loop().call_later((tick - now_ms) / 1000, self._call, tick)
        waiting.add(one)
        return tick

    def remove(self, one: Timed, tick: int) -> None:
        """Does nothing if its turn has come."""
        waiting = self._waiting.get(tick)
        if waiting is not None:
            waiting.discard(one)

    def __len__(self) -> int:
        """Number of timers that run."""
        return len(self._waiting)

    def _call(self, tick: int) -> None:
        for one in self._waiting.pop(tick):
            one.due()


class Limit(Interruption):
    """`with Limit(ticks, seconds):` raises TimeoutError inside the block once they are over, a tick late at most; it can be interrupted
    for other reasons too."""

    __slots__ = ("_seconds", "_tick", "_ticks", "until")

    def __init__(self, ticks: Ticks, seconds: float | None) -> None:
        """seconds: None for no limit yet."""
        super().__init__()
        self._ticks = ticks
        self._seconds = seconds
        self._tick = -1
        self.until: float | None = None
        """Monotonic seconds."""

    def begin(self) -> None:
        super().begin()
        if self._seconds is not None:
            self.set(self._seconds)

    def set(self, seconds: float) -> None:
        """From now; in place of what held before."""
        if self._tick >= 0:
            self._ticks.remove(self, self._tick)
        self.until = time.monotonic() + seconds
        self._tick = self._ticks.add(self, seconds)

    def due(self) -> None:
        self.end(TimeoutError())

    def over(self, error: BaseException | None) -> BaseException | None:
        if self._tick >= 0:
            self._ticks.remove(self, self._tick)
        return super().over(error)


def without_frames(error: E) -> E:
    """The error, and what led to it, without tracebacks, whose frames may hold large variables. Who returns an error of its own is in a
    cycle with it: all that it holds would stay until a garbage collection."""
    chain: list[BaseException] = [error]
    for link in chain:
        link.__traceback__ = None
        chain += [other for other in (link.__cause__, link.__context__) if other is not None and other.__traceback__ is not None]
    return error
