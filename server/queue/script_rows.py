"""Messages to the Lua scripts, as msgpack, and the rows that they answer.

Their msgpack knows no bytes: messages are arguments of their own, in the order of what they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from server.queue.record import Draft


class Bound(msgspec.Struct, frozen=True):
    """At most so many jobs and bytes."""

    items: int
    nbytes: int


class Bounds(msgspec.Struct, frozen=True):
    all: Bound
    long: Bound
    """Where routes that take long are refused: the rest is for those of one pass."""
    own: Bound
    """One owner holds at most so much of all."""
    own_last: Bound
    """One owner holds at most so much of that rest."""
    low: Bound
    """All work of priority low together."""


class Enqueued(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job as a gateway hands it in."""

    job: str
    stream: str
    gateway: str
    deadline_ms: int
    place: str
    """Where its message lies: `inline` in the stream entry, `blob` beside it, or written as `stage:<id>` before."""
    nbytes: int
    owner: str
    """The client, hashed; `-`: nobody that can be told apart."""
    work_ms: int
    """Milliseconds that the service takes for it, by announced rates."""
    takes_long: bool
    """Whether its route takes jobs of more than one pass."""
    behind_ms: int
    """It is less urgent by so much than its stream."""
    low: bool
    """Its client asked for priority low."""
    max_items: int = 0
    """The owner may have so many unfinished; 0: no limit of its own."""


class Request(msgspec.Struct, frozen=True):
    """The jobs of one request, which are admitted all or none."""

    jobs: list[Enqueued]
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
    max_results: int
    """Bytes that all records' results may take."""
    record: str
    """Its id begins with the epoch of the Redis that it was made for."""
    draft: Draft
    ttl_ms: int
    """How long the record and its results outlive its end."""
    jobs: list[Enqueued]
    """Those of the queue that it stands for."""
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
