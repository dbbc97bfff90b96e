"""Cancellation, deadlines and bounds of clients, for one event loop. Imports nothing of `server`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from types import TracebackType
from typing import Literal, Protocol, TypeVar

E = TypeVar("E", bound=BaseException)
TICK_LENGTHS_MS = ((5.0, 20), (60.0, 250), (inf, 1000))
"""Deadlines of up to this many seconds → tick length in milliseconds. All that is due in the same tick shares one timer of the event loop:
a timer each costs as much as the rest of a deadline, and would outlive it by far, as most are cancelled long before."""


class AsyncCancelScope:
    """A cancel scope: after `with AsyncCancelScope() as scope:`, `scope.end(reason)` raises `reason` in the block, at its next await."""

    __slots__ = ("_cancelling", "_reason", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._reason: Exception | None = None

    def enter(self) -> None:
        """Let the running task be cancelled."""
        self._task = task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()

    def end(self, reason: Exception) -> None:
        if self._task is not None and self._reason is None:
            self._reason = reason
            self._task.cancel()

    def close(self, error: BaseException | None) -> BaseException | None:
        """Stop further cancellation. Return what really happened: the reason instead of a cancellation that it caused."""
        task, self._task = self._task, None
        reason, self._reason = self._reason, None
        if reason is None or task is None:
            return error
        only_ours = task.uncancel() <= self._cancelling
        return reason if only_ours and isinstance(error, asyncio.CancelledError) else error

    def __enter__(self) -> AsyncCancelScope:
        self.enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        happened = self.close(error)
        if happened is not error and happened is not None:
            try:
                raise happened from None
            finally:
                del happened  # its frames are this one and those that it passes: they would keep each other


class TimerListener(Protocol):
    def due(self) -> None: ...


class TimerWheel:
    """A timer wheel of one event loop. It calls listeners at most a tick late."""

    def __init__(self) -> None:
        self._waiting: dict[int, set[TimerListener]] = {}
        """Listeners by the end of their tick, in milliseconds of the monotonic clock."""

    def add(self, one: TimerListener, seconds: float) -> int:
        """Call `one.due()` after this many seconds. Return the tick, for `remove`."""
        now_ms = time.monotonic() * 1000
        length = next(length for limit, length in TICK_LENGTHS_MS if seconds <= limit)
        tick = (int(now_ms + max(seconds, 0.0) * 1000) // length + 1) * length
        waiting = self._waiting.get(tick)
        if waiting is None:
            waiting = self._waiting[tick] = set()
            asyncio.get_running_loop().call_later((tick - now_ms) / 1000, self._call, tick)
        waiting.add(one)
        return tick

    def remove(self, one: TimerListener, tick: int) -> None:
        """Remove a listener, unless it has been called."""
        waiting = self._waiting.get(tick)
        if waiting is not None:
            waiting.discard(one)

    def __len__(self) -> int:
        """Return the number of running timers."""
        return len(self._waiting)

    def _call(self, tick: int) -> None:
        for one in self._waiting.pop(tick):
            one.due()


class Deadline(AsyncCancelScope):
    """A cancel scope with a deadline: `with Deadline(ticks, seconds):` raises TimeoutError in the block at most a tick late.

    It can be cancelled for other reasons, too."""

    __slots__ = ("_seconds", "_tick", "_ticks", "until")

    def __init__(self, ticks: TimerWheel, seconds: float | None) -> None:
        """seconds: None for no deadline yet."""
        super().__init__()
        self._ticks = ticks
        self._seconds = seconds
        self._tick = -1
        self.until: float | None = None
        """Deadline on the monotonic clock, in seconds."""

    def enter(self) -> None:
        super().enter()
        if self._seconds is not None:
            self.set(self._seconds)

    def set(self, seconds: float) -> None:
        """Replace the deadline by one in this many seconds from now."""
        if self._tick >= 0:
            self._ticks.remove(self, self._tick)
        self.until = time.monotonic() + seconds
        self._tick = self._ticks.add(self, seconds)

    def due(self) -> None:
        self.end(TimeoutError())

    def close(self, error: BaseException | None) -> BaseException | None:
        if self._tick >= 0:
            self._ticks.remove(self, self._tick)
        return super().close(error)


def strip_tracebacks(error: E) -> E:
    """Remove the tracebacks of an error and of its causes, whose frames may hold large variables.

    A function that returns an error of its own is in a cycle with it, which would stay until a garbage collection."""
    chain: list[BaseException] = [error]
    for link in chain:
        link.__traceback__ = None
        chain += [other for other in (link.__cause__, link.__context__) if other is not None and other.__traceback__ is not None]
    return error


QueuedAmount = tuple[int, "asyncio.Future[None]"]


class ClientBound:
    """A bound of `total` for all clients together and `each` for one; the client "" is anonymous and bound by `total` alone.

    Callers that do not wait check `exceeded_bound` first, and reject work or free something. Callers that wait use `enter`, clients in
    turn, and an amount beyond a bound is held alone. It serves one event loop, and iterates over the clients that hold something.
    """

    def __init__(self, total: float = inf, each: float = inf, may_start: Callable[[str], bool] | None = None) -> None:
        """may_start: whether a waiting client's turn may come now. Other clients overtake it; call `admit` when the result changes."""
        self.total = total
        self.each = each
        self._may_start = may_start
        self._taken = 0
        self._amounts: dict[str, int] = {}
        """Amounts by client; no client holds 0."""
        self._waiting: dict[str, deque[QueuedAmount]] = {}
        """Waiting amounts by client; no queue is empty, and the client whose turn is next comes first."""

    def amount(self, client: str | None = None) -> int:
        """Return the amount that a client holds, or all clients together if it is None."""
        return self._taken if client is None else self._amounts.get(client, 0)

    def exceeded_bound(self, client: str, amount: int) -> Literal["", "each", "total"]:
        """Return the bound that this much more would exceed. Empty if there is none."""
        if client and self._amounts.get(client, 0) + amount > self.each:
            return "each"
        return "total" if self._taken + amount > self.total else ""

    def take(self, client: str, amount: int) -> None:
        self._taken += amount
        self._amounts[client] = self._amounts.get(client, 0) + amount

    def give(self, client: str, amount: int) -> None:
        """Return an amount, and admit those that wait for it."""
        self._taken -= amount
        left = self._amounts[client] - amount
        if left:
            self._amounts[client] = left
        else:
            del self._amounts[client]
        if self._waiting:
            self.admit()

    def greediest(self) -> tuple[str, int]:
        """Return the client that holds most, and its amount; ("", 0) if no known client holds anything."""
        return max(((client, amount) for client, amount in self._amounts.items() if client), key=lambda pair: pair[1], default=("", 0))

    async def enter(self, client: str, amount: int) -> None:
        """Wait until the client holds the amount; return it with `give`."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append((amount, turn))
        self.admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self.admit()
            else:
                self.give(client, amount)
            raise

    def admit(self) -> None:
        """Admit the clients whose turn may come."""
        while (client := self._next()) is not None:
            line = self._waiting.pop(client)
            amount, turn = line.popleft()
            if line:
                self._waiting[client] = line  # behind all others
            if not turn.done():
                self.take(client, amount)
                turn.set_result(None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._amounts)

    def _next(self) -> str | None:
        """Return the next client within its bound; it is not overtaken while too little is left of the total."""
        for client, line in self._waiting.items():
            amount, turn = line[0]
            if turn.done():  # it has left
                return client
            if self._amounts.get(client) and self.exceeded_bound(client, amount) == "each":
                continue
            if self._may_start is not None and not self._may_start(client):
                continue
            return None if self._taken and self._taken + amount > self.total else client
        return None
