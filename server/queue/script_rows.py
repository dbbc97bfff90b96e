"""Arguments and answers of the Lua scripts that several modules use. Messages follow the arguments, in the order of what they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from server.queue.record import RecordDraft

NO_OWNER = "-"
"""The owner of jobs whose client cannot be distinguished, as the scripts spell it."""


class QueueAmount(msgspec.Struct, frozen=True):
    """Jobs of the queue, and the bytes of their messages."""

    items: int = 0
    nbytes: int = 0

    def __add__(self, other: QueueAmount) -> QueueAmount:
        return QueueAmount(self.items + other.items, self.nbytes + other.nbytes)


class Bounds(msgspec.Struct, frozen=True):
    """Limits of the queue."""

    all: QueueAmount
    long: QueueAmount
    """Limit for routes that take long: the rest is for those of one pass."""
    own: QueueAmount
    """Limit of one owner."""
    own_last: QueueAmount
    """Limit of one owner in that rest."""
    low: QueueAmount
    """Limit of all work of priority low."""
    records: QueueAmount
    """Limit of all records."""
    results: QueueAmount
    """Limit of all records' results."""


class Promises(msgspec.Struct, frozen=True):
    """Room that a gateway has promised: to all, to the owner of a claim, to work of priority low, and to the claim's own request before."""

    all: QueueAmount
    own: QueueAmount
    low: QueueAmount
    before: QueueAmount


class Claim(msgspec.Struct, frozen=True):
    """Room that a request needs."""

    owner: str = NO_OWNER
    """The client, hashed."""
    takes_long: bool = False
    """Whether its route takes jobs of more than one pass."""
    low: bool = False
    """Whether its client wants priority low."""
    max_items: int = 0
    """Maximum number of unfinished items of the owner, by its API key; 0: no limit of its own."""
    items: int = 0
    nbytes: int = 0
    work_ms: int = 0
    """Milliseconds that the service takes for it, by announced rates."""
    takes: bool = False
    """Whether it counts for the next claims of the same call."""
    promised: Promises | None = None
    """None: its jobs are here."""


class AdmissionChecks(msgspec.Struct, frozen=True):
    bounds: Bounds
    claims: list[Claim]


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """The reason why a claim is refused, or that it is let in."""

    reason: bytes = b""
    """See `parts/admission.lua`; also `late`, and `unstaged`: a staged message is missing. Empty: let in."""
    wait_ms: int = 0
    """Time until there is room, by the work that is unfinished."""
    items: int = 0
    """Usage of the bound that refused. If let in: how much more would be, or how many jobs wait before those that were queued."""
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


class JobRow(msgspec.Struct, frozen=True):
    """A job to enqueue."""

    job: str
    stream: str
    gateway: str
    deadline_ms: int
    place: str
    """`inline`: its message is in the stream entry; `blob`: in a key of its own; `stage`: it was written as `stage:<id>` before."""
    nbytes: int
    owner: str
    work_ms: int
    behind_ms: int
    """Delay behind others of its stream."""
    low: bool


class RequestRow(msgspec.Struct, frozen=True):
    """The jobs of one request, which are admitted all or none."""

    jobs: list[JobRow]
    claim: Claim
    again: bool
    """Whether they were admitted once, and Redis lost them."""
    place: bool
    """Whether to count how many wait before the first of them."""


class AdmissionCall(msgspec.Struct, frozen=True):
    """Requests that are admitted in one call. Then the messages of all their jobs, empty for those that are staged."""

    bounds: Bounds
    requests: list[RequestRow]


class RecordAdmissionCall(msgspec.Struct, frozen=True, kw_only=True):
    """A client's job that gets a record. Then the msgpack of the task's plan, and the messages as in an `AdmissionCall`."""

    bounds: Bounds
    record: str
    """Id, which begins with the epoch of the Redis that it was made for."""
    draft: RecordDraft
    ttl_ms: int
    """Time to live of the record and its results after its end."""
    jobs: list[JobRow]
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
    """Time at which the job was queued first, on Redis' clock."""
    dropped: bytes
    """Why it must not run: `deadline`, `cancelled`, `gateway` (dead), `payload` (lost); empty if it may."""
    message: bytes
    """Empty if it is large: then it is in a key of its own."""


class HeldRow(msgspec.Struct, frozen=True):
    """A job that a worker holds."""

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
    """Kind of failure; empty if it did not fail, or no client waits."""
    detail: str = ""


class BatchEnd(msgspec.Struct, frozen=True):
    """Jobs of one bundle that end together. Then the reply to each, which is empty if no client waits."""

    bundle: str
    worker: str
    size: int
    """Number of jobs of the batch; 0: none ran."""
    is_counted: bool
    """Whether an earlier call has counted the batch for the statistics."""
    most_dead: int
    """Dead letters that are kept."""
    jobs: list[EndedRow]


class ProgressRow(HeldRow, frozen=True):
    """Progress of a job."""

    done: int
    total: int
    unit: str
    preview: bool
    """Whether its report brings something to show."""


class ReturnedRow(HeldRow, frozen=True):
    """A job that a worker returns to the queue."""

    alone: bool


def parse_whole_number(text: bytes) -> int:
    """Return a whole number as Opsin's processes write them; 0 for anything else, which other programs may have written."""
    return int(text) if len(text) < 16 and text.isdigit() else 0
