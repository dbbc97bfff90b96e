"""Room in the queue, taken as a request's body arrives and given up once its jobs are in the queue itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType

from server.queue.shares import Claim, Held, Ledger

Check = Callable[[Claim, Held], Awaitable[None]]
"""Raises QueueFull if so much more has no room."""


class Reservation:
    """`async with dispatcher.reserve(items, nbytes) as reservation:` raises QueueFull on entry; leaving gives the room back."""

    def __init__(self, ledger: Ledger, check: Check, claim: Claim, items: int, nbytes: int) -> None:
        self._ledger = ledger
        self._check = check
        self._claim = claim
        self._wanted = (items, nbytes)
        self.items = 0
        self.nbytes = 0

    async def __aenter__(self) -> Reservation:
        await self.resize(*self._wanted)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    async def check(self, items: int = 0, nbytes: int = 0, work_ms: int = 0) -> None:
        """Raises QueueFull if so much more would have no room now; takes none."""
        await self._check(self._claim, Held(items, nbytes, work_ms))

    async def resize(self, items: int, nbytes: int) -> None:
        """As the body arrives, and once it tells how many images it holds. Raises QueueFull and keeps what it had."""
        await self._check(self._claim, Held(items - self.items, nbytes - self.nbytes))
        self._take(items, nbytes)

    def release(self) -> None:
        """Idempotent; `submit_all(jobs, reservation=…)` does it when the queue counts the jobs itself."""
        self._take(0, 0)

    def _take(self, items: int, nbytes: int) -> None:
        self._ledger.add(self._claim.owner, items - self.items, nbytes - self.nbytes)
        self.items, self.nbytes = items, nbytes
