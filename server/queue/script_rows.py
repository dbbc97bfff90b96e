"""Messages to the Lua scripts, as msgpack, and the rows that they answer.

Their msgpack knows no bytes: messages are arguments of their own, in the order of what they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from server.queue.record import Draft

NO_OWNER = "-"
"""The owner of jobs whose client cannot be told apart from others, as the scripts spell it."""


class Amount(msgspec.Struct, frozen=True):
    items: int = 0
    """Jobs of the queue."""
    nbytes: int = 0


class Bounds(msgspec.Struct, frozen=True):
    all: Amount
    long: Amount
    """Of work of routes that take long: the rest is for those of one pass."""
    own: Amount
    """Of one owner."""
    own_last: Amount
    """Of one owner in that rest."""
    low: Amount
    """Of all work of priority low."""
    records: Amount
    """Of all records."""
    results: Amount
    """Bytes of all records' results."""


class Promised(msgspec.Struct, frozen=True):
    """What a gateway has promised beyond the queue."""

    all: Amount
    own: Amount
    """To the owner of a claim."""
    low: Amount
    """To work of priority low."""
    before: Amount
    """To the request of the claim itself."""


class Claim(msgspec.Struct, frozen=True):
    """What a request asks for."""

    owner: str = NO_OWNER
    """The client, hashed."""
    takes_long: bool = False
    """Whether its route takes jobs of more than one pass."""
    low: bool = False
    """Whether its client asked for priority low."""
    max_items: int = 0
    """The owner may have so many unfinished, by its API key; 0: no limit of its own."""
    items: int = 0
    nbytes: int = 0
    work_ms: int = 0
    """Milliseconds that the service takes for it, by announced rates."""
    takes: bool = False
    """Whether it counts for the next claims of the same call."""
    promised: Promised | None = None
    """None: nothing, the jobs are here."""


class AdmissionChecks(msgspec.Struct, frozen=True):
    bounds: Bounds
    claims: list[Claim]


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """Why a claim is refused, or that it is let in."""

    reason: bytes = b""
    """See `parts/admission.lua`; also `late`, `unstaged`: a message that should have been written before is not there. Empty: let in."""
    wait_ms: int = 0
    """Until there is room, by the work that is unfinished."""
    items: int = 0
    """What is held of the bound that refused. If let in: how much more would be, or how many jobs wait before those that were queued."""
    nbytes: int = 0
    work_ms: int = 0
    max_items: int = 0
    """The bound that refused."""
    max_nbytes: int = 0


class AdmissionAnswer(msgspec.Struct, frozen=True, array_like=True):
    """The load of the queue, and the outcome of each claim."""

    now_ms: int
    items: int
    nbytes: int
    work_ms: int
    outcomes: list[Outcome]


class Enqueued(msgspec.Struct, frozen=True):
    """A job as a gateway hands it in."""

    job: str
    stream: str
    gateway: str
    deadline_ms: int
    place: str
    """Where its message lies: `inline` in the stream entry, `blob` beside it, or written as `stage:<id>` before."""
    nbytes: int
    owner: str
    work_ms: int
    behind_ms: int
    """It is less urgent by so much than its stream."""
    low: bool


class Request(msgspec.Struct, frozen=True):
    """The jobs of one request, which are admitted all or none."""

    jobs: list[Enqueued]
    claim: Claim
    again: bool
    """They were admitted once, and Redis lost them."""
    place: bool
    """Asks how many wait before the first of them."""


class AdmissionCall(msgspec.Struct, frozen=True):
    """Requests that are admitted in one call. Then the messages of all their jobs, empty for those that are staged."""

    bounds: Bounds
    requests: list[Request]


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A client's job that gets a record. Then the msgpack of the task's plan, and the messages as in an `AdmissionCall`."""

    bounds: Bounds
    record: str
    """Its id begins with the epoch of the Redis that it was made for."""
    draft: Draft
    ttl_ms: int
    """How long the record and its results outlive its end."""
    jobs: list[Enqueued]
    """Those of the queue that it stands for."""
    claim: Claim
    names: Sequence[str]
    """Fields of the record that the answer shows."""


class TakenRow(NamedTuple):
    """A stream entry that a worker has taken."""

    stream: bytes
    entry: bytes
    job: bytes
    gateway: bytes
    nbytes: int
    added_ms: int
    """When the job was queued first, on Redis' clock."""
    dropped: bytes
    """Why it must not run: `deadline`, `cancelled`, `gateway` (dead), `payload` (lost); empty if it may."""
    message: bytes
    """Empty if it is large: then it lies beside the stream."""


class Pull(msgspec.Struct, frozen=True):
    """A worker's capacity for jobs."""

    worker: str
    absence_counts: bool
    """Whether an absent `gw:<id>` means a dead gateway."""
    capacity: msgspec.Raw
    """{{stream, its handicap in ms, the number of its pool (streams may share one)}…}, {places of each pool…}."""


class StepBegin(msgspec.Struct, frozen=True):
    """A batch that is about to run. Then the msgpack of {`alone` or `together`, {id of each job…}}."""

    worker: str
    slot: int
    absence_counts: bool
    """Whether an absent `gw:<id>` means a dead gateway."""
    jobs: list[tuple[str, int, str]]
    """Id, deadline and gateway of each job that must be checked."""


class HeldRow(msgspec.Struct, frozen=True):
    """A job in a worker's hands."""

    stream: str
    entry: str
    job: str
    gateway: str


class EndedRow(HeldRow, frozen=True):
    """The end of a job."""

    added_ms: int
    dead_letter: str
    """Why a copy goes to the dead-letter stream; empty: none does."""
    outcome: str
    """`success` or `fail`; empty: not for the statistics."""
    batch_wait_ns: int
    inference_ns: int
    worker_ns: int
    stored: str = ""
    """Key of the reply's arrays, if these are too large for a script's argument."""
    failure: str = ""
    """Kind of failure; empty if it did not fail, or nobody waits."""
    detail: str = ""


class Finished(msgspec.Struct, frozen=True):
    """Jobs of one bundle that end together. Then the reply to each, which is empty if nobody waits."""

    bundle: str
    worker: str
    size: int
    """Of the batch; 0: none ran."""
    is_counted: bool
    """Whether an earlier call has counted the batch for the statistics."""
    most_dead: int
    """Dead letters that are kept."""
    jobs: list[EndedRow]


class ProgressRow(HeldRow, frozen=True):
    """A job that has come further."""

    done: int
    total: int
    unit: str
    preview: bool
    """Whether its report brings something to show."""


class ProgressReports(msgspec.Struct, frozen=True):
    """Then, for each job, the message that reports it."""

    worker: str
    jobs: list[ProgressRow]


class ReturnedRow(HeldRow, frozen=True):
    """A job that a worker gives to the others."""

    alone: bool


class Requeued(msgspec.Struct, frozen=True):
    worker: str
    jobs: list[ReturnedRow]


def parse_whole_number(text: bytes) -> int:
    """Return a whole number as our own processes write them; 0 for anything else, which anybody may have written."""
    return int(text) if len(text) < 16 and text.isdigit() else 0
