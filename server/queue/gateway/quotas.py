"""How full the queue is and what a client may hold of it: the rules of `parts/admission.lua`, and what a gateway has promised beyond."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from server.queue.errors import ClientShare, KeyShare, NeverFits, QueueFull
from server.queue.script_rows import Bound, Bounds

LOW = "low"
"""Stands among the owners for all work of priority low. No owner is called so: owners are hashes, which are longer."""
WORK_IN_COMMON_MS = 60_000
"""While more is unfinished, and several owners' are among it, one has at most half of it. Whoever has none is let in with any request: else
others could keep out what takes longer than theirs."""


class Claim(NamedTuple):
    """A client that asks for places, and its kind of work."""

    owner: str = ""
    """The client, hashed; empty: nobody that can be told apart, who has no share."""
    takes_long: bool = False
    low: bool = False
    """It asks for priority low."""
    max_items: int = 0
    """Most unfinished jobs of the owner, by its API key; 0: no limit of its own."""


class Held(NamedTuple):
    """The unfinished work of all, or of one owner."""

    items: int = 0
    nbytes: int = 0
    work_ms: int = 0
    last_items: int = 0
    """Those of them that were let into the last eighth."""
    last_nbytes: int = 0


@dataclass
class Ledger:
    """Places that a gateway has promised and not queued yet."""

    items: int = 0
    nbytes: int = 0
    items_of: Counter[str] = field(default_factory=Counter)
    """By owner."""
    nbytes_of: Counter[str] = field(default_factory=Counter)

    def add(self, claim: Claim, items: int, nbytes: int) -> None:
        self.items += items
        self.nbytes += nbytes
        for counts, amount in ((self.items_of, items), (self.nbytes_of, nbytes)):
            for owner in (claim.owner, LOW) if claim.low else (claim.owner,):
                counts[owner] += amount
                if not counts[owner]:
                    del counts[owner]


NOTHING = Ledger()


def bounds(max_items: int, max_nbytes: int) -> Bounds:
    """The last eighth, rounded down, is for routes of one pass, half of it for one owner; an owner has three quarters of all, and all work
    of priority low a half."""
    eighths = max_items // 8, max_nbytes // 8
    return Bounds(
        all=Bound(max_items, max_nbytes),
        long=Bound(max_items - eighths[0], max_nbytes - eighths[1]),
        own=Bound(max(1, 3 * max_items // 4), 3 * max_nbytes // 4),
        own_last=Bound(math.ceil(eighths[0] / 2), math.ceil(eighths[1] / 2)),
        low=Bound(max(1, max_items // 2), max_nbytes // 2),
    )


def refusal(bounds: Bounds, load: Load, promised: Ledger, claim: Claim, asked: Held, has: Held) -> QueueFull | NeverFits | None:
    """Why so much more is not let in now, and after how many seconds it will be; None: it is. has: what the same request has been promised
    before."""
    all_, own, low = load.all, load.owners.get(claim.owner, Held()), load.owners.get(LOW, Held())
    items, nbytes = all_.items + promised.items + asked.items, all_.nbytes + promised.nbytes + asked.nbytes
    in_last_eighth = _exceeds(items, nbytes, bounds.long)

    def until_free(held: Held, items: int, nbytes: int, bound: Bound) -> int:
        return seconds(all_.work_ms * max(_share(items - bound.items, held.items), _share(nbytes - bound.nbytes, held.nbytes)))

    if _exceeds(items, nbytes, bounds.all):
        return QueueFull(until_free(all_, items, nbytes, bounds.all), f"the queue is full: {all_.items} jobs, {all_.nbytes} bytes")
    if claim.low:
        whole = Held(has.items + asked.items, has.nbytes + asked.nbytes)
        if _exceeds(whole.items, whole.nbytes, bounds.low):
            detail = f"priority low may hold {bounds.low.items} jobs and {bounds.low.nbytes} bytes, half of the queue"
            return NeverFits(f"the request holds {whole.items} jobs and {whole.nbytes} bytes, and all work of {detail}")
        low_items = low.items + promised.items_of[LOW] + asked.items
        low_nbytes = low.nbytes + promised.nbytes_of[LOW] + asked.nbytes
        if _exceeds(low_items, low_nbytes, bounds.low):
            detail = f"work of priority low has its half of the queue: {low.items} jobs, {low.nbytes} bytes"
            return QueueFull(until_free(low, low_items, low_nbytes, bounds.low), detail)
    if claim.owner:
        own_items = own.items + promised.items_of[claim.owner] + asked.items
        own_nbytes = own.nbytes + promised.nbytes_of[claim.owner] + asked.nbytes
        if _exceeds(own_items, own_nbytes, bounds.own):
            detail = f"one client holds at most {bounds.own.items} jobs and {bounds.own.nbytes} bytes of the queue"
            return ClientShare(until_free(own, own_items, own_nbytes, bounds.own), detail)
        in_common = all_.work_ms > WORK_IN_COMMON_MS and all_.work_ms > own.work_ms > 0
        if in_common and 2 * (own.work_ms + asked.work_ms) > all_.work_ms + asked.work_ms:
            detail = f"one client has at most half of the work while others wait, too: {seconds(own.work_ms)} s are unfinished"
            return ClientShare(seconds(all_.work_ms - WORK_IN_COMMON_MS), detail)
        if in_last_eighth and _exceeds(own.last_items + asked.items, own.last_nbytes + asked.nbytes, bounds.own_last):
            detail = f"the queue is nearly full: one client holds at most {bounds.own_last.items} jobs of its last eighth"
            return ClientShare(until_free(all_, items, nbytes, bounds.long), detail)
    if in_last_eighth and claim.takes_long:
        detail = f"the queue is full but for what takes one pass: {all_.items} jobs, {all_.nbytes} bytes"
        return QueueFull(until_free(all_, items, nbytes, bounds.long), detail)
    return None


def beyond_key(all_: Held, own: Held, claim: Claim, items: int) -> KeyShare | NeverFits:
    """Why so many more items are too many for the API key of their owner, who holds `own`.

    The script alone tells whether they are: whoever sends one request after the other at the limit would be refused by older figures."""
    if items > claim.max_items:
        return NeverFits(f"the request is {items} jobs of the queue, and its API key may have {claim.max_items} at once (max_items)")
    wait = all_.work_ms * _share(own.items + items - claim.max_items, own.items)
    return KeyShare(seconds(wait), f"this API key may have {claim.max_items} unfinished items at once (max_items)")


def _exceeds(items: int, nbytes: int, bound: Bound) -> bool:
    return items > bound.items or nbytes > bound.nbytes


def owners(flat: list[bytes]) -> Mapping[str, Held]:
    """Read what `parts/items.lua` tells of them; what anybody else may have written there is left out."""
    held = {}
    for owner, numbers in zip(flat[::2], flat[1::2], strict=True):
        words = numbers.split()
        if len(words) == len(Held._fields) and all(word.isdigit() for word in words):
            held[owner.decode(errors="replace")] = Held(*map(int, words))
    return held


def _share(amount: int, held: int) -> float:
    """Share of what is held that must end, so that so much is free."""
    return min(1.0, max(0, amount) / held) if held else 0.0


def seconds(milliseconds: float) -> int:
    """For Retry-After."""
    return max(1, math.ceil(milliseconds / 1000))


@dataclass(frozen=True)
class Load:
    """The queue as the beat reports it."""

    all: Held = field(default_factory=Held)
    owners: Mapping[str, Held] = field(default_factory=dict)


class Reservation:
    """Places that a gateway has promised to a request: none at first, until `resize`, and none after `release`."""

    def __init__(self, ledger: Ledger, check: Callable[[Claim, Held, Held], Awaitable[None]], claim: Claim) -> None:
        """`check` raises QueueFull if so much more has no place beside what the request has, NeverFits if it never will."""
        self._ledger = ledger
        self._check = check
        self.claim = claim
        self.items = 0
        self.nbytes = 0

    def lengthen(self) -> None:
        """From now on it is for work that takes long."""
        self.claim = self.claim._replace(takes_long=True)

    def lower(self) -> None:
        """From now on it is for work of priority low."""
        held = self.items, self.nbytes
        self._take(0, 0)
        self.claim = self.claim._replace(low=True)
        self._take(*held)

    async def check(self, items: int = 0, nbytes: int = 0, work_ms: int = 0) -> None:
        """Raises QueueFull if so much more would have no place now, NeverFits if it never will; takes none."""
        await self._check(self.claim, Held(items, nbytes, work_ms), Held(self.items, self.nbytes))

    async def resize(self, items: int, nbytes: int) -> None:
        """As the body arrives, and once it tells how many images it holds. Raises QueueFull and keeps what it had; NeverFits for more than
        the owner's API key or work of priority low may hold at all."""
        if 0 < self.claim.max_items < items:
            raise beyond_key(Held(), Held(), self.claim, items)
        await self._check(self.claim, Held(items - self.items, nbytes - self.nbytes), Held(self.items, self.nbytes))
        self._take(items, nbytes)

    def release(self) -> None:
        """Idempotent; `Submitter.submit(jobs, reservation=…)` does it when the queue counts the jobs itself."""
        self._take(0, 0)

    def _take(self, items: int, nbytes: int) -> None:
        self._ledger.add(self.claim, items - self.items, nbytes - self.nbytes)
        self.items, self.nbytes = items, nbytes
