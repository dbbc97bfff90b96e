"""What one client may hold of the queue, and when what refuses a request will be free.

`scripts/parts/admitting.lua` decides, by the same bounds; a gateway looks first, so that most refusals need no body.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from server.queue.errors import ClientShare, QueueFull
from server.queue.rows import Bounds

WORK_IN_COMMON_MS = 60_000
"""While more is unfinished, and several owners' are among it, one has at most half of it. Whoever has none is let in with any request: else
others could keep out what takes longer than theirs."""


class Claim(NamedTuple):
    """Who asks for room, and for what kind of work."""

    owner: str = ""
    """The client, hashed; empty: nobody that can be told apart, who has no share."""
    takes_long: bool = False


class Held(NamedTuple):
    """What all, or one owner, have in the queue unfinished."""

    items: int = 0
    nbytes: int = 0
    work_ms: int = 0
    last_items: int = 0
    """Of them, those that were let into the last eighth."""
    last_nbytes: int = 0


@dataclass
class Ledger:
    """What a gateway has promised and not queued yet."""

    items: int = 0
    nbytes: int = 0
    items_of: Counter[str] = field(default_factory=Counter)
    """By owner."""
    nbytes_of: Counter[str] = field(default_factory=Counter)

    def add(self, owner: str, items: int, nbytes: int) -> None:
        self.items += items
        self.nbytes += nbytes
        for counts, amount in ((self.items_of, items), (self.nbytes_of, nbytes)):
            counts[owner] += amount
            if not counts[owner]:
                del counts[owner]


NOTHING = Ledger()


def bounds(max_items: int, max_nbytes: int) -> Bounds:
    """The last eighth, rounded down, is for routes of one pass, half of it for one owner; an owner has three quarters of all."""
    eighths = max_items // 8, max_nbytes // 8
    return Bounds(
        items=max_items,
        nbytes=max_nbytes,
        long_items=max_items - eighths[0],
        long_nbytes=max_nbytes - eighths[1],
        own_items=max(1, 3 * max_items // 4),
        own_nbytes=3 * max_nbytes // 4,
        own_last_items=math.ceil(eighths[0] / 2),
        own_last_nbytes=math.ceil(eighths[1] / 2),
    )


def refusal(bounds: Bounds, all_: Held, own: Held, promised: Ledger, claim: Claim, asked: Held) -> QueueFull | None:
    """Why so much more is not let in now, and after how many seconds it will be; None: it is. `own`: what the claim's owner holds."""
    items, nbytes = all_.items + promised.items + asked.items, all_.nbytes + promised.nbytes + asked.nbytes
    in_last_eighth = items > bounds.long_items or nbytes > bounds.long_nbytes

    def until_free(held: Held, items: int, nbytes: int, most_items: int, most_nbytes: int) -> int:
        return seconds(all_.work_ms * max(_share(items - most_items, held.items), _share(nbytes - most_nbytes, held.nbytes)))

    if items > bounds.items or nbytes > bounds.nbytes:
        wait = until_free(all_, items, nbytes, bounds.items, bounds.nbytes)
        return QueueFull(wait, f"the queue is full: {all_.items} jobs, {all_.nbytes} bytes")
    if claim.owner:
        own_items = own.items + promised.items_of[claim.owner] + asked.items
        own_nbytes = own.nbytes + promised.nbytes_of[claim.owner] + asked.nbytes
        if own_items > bounds.own_items or own_nbytes > bounds.own_nbytes:
            wait = until_free(own, own_items, own_nbytes, bounds.own_items, bounds.own_nbytes)
            return ClientShare(wait, f"one client holds at most {bounds.own_items} jobs and {bounds.own_nbytes} bytes of the queue")
        in_common = all_.work_ms > WORK_IN_COMMON_MS and all_.work_ms > own.work_ms > 0
        if in_common and 2 * (own.work_ms + asked.work_ms) > all_.work_ms + asked.work_ms:
            detail = f"one client has at most half of the work while others wait, too: {seconds(own.work_ms)} s are unfinished"
            return ClientShare(seconds(all_.work_ms - WORK_IN_COMMON_MS), detail)
        last_items, last_nbytes = own.last_items + asked.items, own.last_nbytes + asked.nbytes
        if in_last_eighth and (last_items > bounds.own_last_items or last_nbytes > bounds.own_last_nbytes):
            wait = until_free(all_, items, nbytes, bounds.long_items, bounds.long_nbytes)
            return ClientShare(wait, f"the queue is nearly full: one client holds at most {bounds.own_last_items} jobs of its last eighth")
    if in_last_eighth and claim.takes_long:
        wait = until_free(all_, items, nbytes, bounds.long_items, bounds.long_nbytes)
        return QueueFull(wait, f"the queue is full but for what takes one pass: {all_.items} jobs, {all_.nbytes} bytes")
    return None


def owners(flat: list[bytes]) -> Mapping[str, Held]:
    """What `parts/loads.lua` tells of them; what anybody else may have written there is left out."""
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
