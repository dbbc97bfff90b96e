"""Capacity of the queue that a gateway has reserved for requests. Only `parts/admission.lua` decides whether there is more."""

from __future__ import annotations

import asyncio
import math
import time
from typing import NamedTuple

from msgspec.structs import replace

from server.queue.connect import RedisUnavailable
from server.queue.gateway.connection import GatewayRedisLink
from server.queue.record import RECORD_BYTES
from server.queue.script import AdmissionAnswer, AdmissionChecks, Bounds, Claim, Outcome, Promises, QueueAmount, Refused, Script
from server.settings import Settings

CHECK_ADMISSION = Script("check_admission", AdmissionChecks, AdmissionAnswer)
ALL, LOW = "all", "low"
"""Stand among the owners for all promises, and for those to work of priority low. Owners are hashes, which are longer."""
WORK_IN_COMMON_MS = 60_000
"""Limit as in `parts/admission.lua`: while less is unfinished, work is not shared."""


class Load(QueueAmount, frozen=True):
    """Usage of the queue by unfinished jobs, as Redis said last."""

    work_ms: int = 0


def bounds(settings: Settings) -> Bounds:
    """Return the limits. The last eighth, rounded down, is for routes of one pass, half of it for one owner. An owner has three quarters of
    all; work of priority low has a half, and so have records."""
    items, nbytes = settings.queue_max_items, settings.queue_max_bytes
    eighths = items // 8, nbytes // 8
    return Bounds(
        all=QueueAmount(items, nbytes),
        long=QueueAmount(items - eighths[0], nbytes - eighths[1]),
        own=QueueAmount(max(1, 3 * items // 4), 3 * nbytes // 4),
        own_last=QueueAmount(math.ceil(eighths[0] / 2), math.ceil(eighths[1] / 2)),
        low=QueueAmount(max(1, items // 2), nbytes // 2),
        records=QueueAmount(items // 2, nbytes // 2),
        results=QueueAmount(0, max(0, settings.results_max_bytes - RECORD_BYTES)),
    )


def is_calm(load: Load, promised: QueueAmount, claim: Claim, bounds: Bounds) -> bool:
    """Return whether a claim is certainly admitted, except for the limits of an API key: no share is smaller than half of the queue."""
    usage = load + promised + QueueAmount(claim.items, claim.nbytes)
    return usage.items <= bounds.low.items and usage.nbytes <= bounds.low.nbytes and load.work_ms <= WORK_IN_COMMON_MS


class Reservations:
    """Promises of one event loop."""

    def __init__(self, link: GatewayRedisLink, settings: Settings, grant_s: float) -> None:
        """grant_s: seconds for which a reservation may grow by the amount that an answer of Redis allowed."""
        self.bounds = bounds(settings)
        self.grant_s = grant_s
        self.load = Load()
        self._link = link
        self._promised: dict[str, QueueAmount] = {}
        """Amounts by owner; no owner has none."""
        self._in_calls = QueueAmount()
        """Amount that calls of `enqueue.lua` carry now. `check_admission.lua` would count it twice if it was promised, too."""
        self._hand_overs = 0
        """Number of reservations that such calls took over so far."""
        self._asking: list[_PendingCheck] = []
        """Claims that are checked with the next call."""
        self._call: asyncio.Task[None] | None = None

    def reserve(self, claim: Claim) -> Reservation:
        """Return an empty reservation, which grows as the body of the request arrives."""
        return Reservation(self, claim)

    async def check(self, reservation: Reservation, claim: Claim) -> None:
        """Raise Refused if there is no capacity for the claim in addition to its reservation; else reserve it for a claim that takes it.

        While Redis is unavailable nothing is refused: `redis_grace` decides."""
        promised = self._promised.get(ALL, QueueAmount()) + self._in_calls
        is_certain = is_calm(self.load, promised, claim, self.bounds) or reservation.grants(claim)
        if is_certain and not 0 < claim.max_items < reservation.items + claim.items:
            reservation.take(claim)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asking.append(_PendingCheck(reservation, claim, turn))
        if self._call is None or self._call.done():
            self._call = self._link.spawn(self._ask())
        await turn

    def promise(self, claim: Claim, items: int, nbytes: int) -> None:
        for owner in (ALL, claim.owner, LOW) if claim.low else (ALL, claim.owner):
            self._promised[owner] = self._promised.get(owner, QueueAmount()) + QueueAmount(items, nbytes)
            if self._promised[owner] == QueueAmount():
                del self._promised[owner]

    def carry(self, items: int, nbytes: int) -> None:
        """Count what a call of `enqueue.lua` carries, until its end."""
        self._hand_overs += items > 0
        self._in_calls = self._in_calls + QueueAmount(items, nbytes)

    async def _ask(self) -> None:
        """Make one call at a time, for all that wait: the next one knows what this one has allowed."""
        while self._asking:
            asking, self._asking = self._asking, []
            hand_overs = self._hand_overs
            try:
                outcomes = await self._outcomes([replace(check.claim, promised=self._promises(check.reservation)) for check in asking])
            except Exception as error:
                for check in asking:
                    if not check.turn.cancelled():
                        check.turn.set_exception(error)
                raise
            for check, outcome in zip(asking, outcomes, strict=True):
                if check.turn.cancelled():
                    continue
                if outcome.reason and hand_overs != self._hand_overs and not check.is_repeated:
                    self._asking.append(check._replace(is_repeated=True))  # it may have counted twice what was promised then
                elif outcome.reason:
                    check.turn.set_exception(Refused(outcome))
                else:
                    check.reservation.take(check.claim)
                    check.reservation.grow_until(time.monotonic() + self.grant_s, outcome)
                    check.turn.set_result(None)

    async def _outcomes(self, claims: list[Claim]) -> list[Outcome]:
        try:
            answer = await self._link.run(CHECK_ADMISSION, AdmissionChecks(self.bounds, claims))
        except RedisUnavailable:
            return [Outcome()] * len(claims)
        self.load = Load(answer.items, answer.nbytes, answer.work_ms)
        return answer.outcomes

    def _promises(self, reservation: Reservation) -> Promises:
        total, of_owner, low = (self._promised.get(owner, QueueAmount()) for owner in (ALL, reservation.claim.owner, LOW))
        return Promises(total, of_owner, low, QueueAmount(reservation.items, reservation.nbytes))


class _PendingCheck(NamedTuple):
    reservation: Reservation
    claim: Claim
    turn: asyncio.Future[None]
    is_repeated: bool = False


class Reservation:
    """Capacity reserved for one request: none before `resize` and after `release`."""

    def __init__(self, reservations: Reservations, claim: Claim) -> None:
        self._reservations = reservations
        self.claim = claim
        self.items = 0
        self.nbytes = 0
        self._grant = 0.0, 0, 0
        """Time, as of `time.monotonic()`, until which it may grow, and by how many items and bytes."""
        self._is_handed_over = False

    def lengthen(self) -> None:
        """Make it one for work that takes long."""
        self.claim = replace(self.claim, takes_long=True)
        self._grant = 0.0, 0, 0

    def lower(self) -> None:
        """Make it one for work of priority low."""
        claim = Claim(items=self.items, nbytes=self.nbytes, takes=True)
        self.release()
        self.claim = replace(self.claim, low=True)
        self.take(claim)

    async def check(self, items: int = 0, nbytes: int = 0, work_ms: int = 0) -> None:
        """Raise Refused if the queue has no capacity for so much more. Reserve nothing."""
        await self._reservations.check(self, replace(self.claim, items=items, nbytes=nbytes, work_ms=work_ms))

    async def resize(self, items: int, nbytes: int) -> None:
        """Reserve so much in total, as the body arrives and once its number of images is known. Raises Refused and keeps what it had."""
        claim = replace(self.claim, items=items - self.items, nbytes=nbytes - self.nbytes, takes=True)
        if claim.items <= 0 and claim.nbytes <= 0:
            self.take(claim)
        else:
            await self._reservations.check(self, claim)

    def hand_over(self) -> None:
        """Count its capacity as that of a call of `enqueue.lua` that brings the jobs. Idempotent until `release`."""
        if not self._is_handed_over:
            self._is_handed_over = True
            self._reservations.promise(self.claim, -self.items, -self.nbytes)
            self._reservations.carry(self.items, self.nbytes)

    def release(self) -> None:
        """Free its capacity. Idempotent. `Submitter.submit(jobs, reservation=…)` does it once the queue counts the jobs itself."""
        if self._is_handed_over:
            self._reservations.carry(-self.items, -self.nbytes)
            self._is_handed_over, self.items, self.nbytes = False, 0, 0
        self.take(Claim(items=-self.items, nbytes=-self.nbytes, takes=True))
        self._grant = 0.0, 0, 0

    def grants(self, claim: Claim) -> bool:
        """Return whether Redis has just allowed so much more."""
        until, items, nbytes = self._grant
        return claim.items <= items and claim.nbytes <= nbytes and not claim.work_ms and time.monotonic() < until

    def grow_until(self, until: float, rest: Outcome) -> None:
        self._grant = until, rest.items, rest.nbytes

    def take(self, claim: Claim) -> None:
        """Reserve the amount of a claim, if it takes it."""
        if claim.takes:
            self._reservations.promise(self.claim, claim.items, claim.nbytes)
            self.items, self.nbytes = self.items + claim.items, self.nbytes + claim.nbytes
            until, items, nbytes = self._grant
            self._grant = until, items - claim.items, nbytes - claim.nbytes
