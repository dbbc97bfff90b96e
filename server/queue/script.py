"""The queue's scripts: Lua files, and the types of their arguments and answers. Messages follow the arguments, in the order of their jobs.

A process that runs one sends EVALSHA, and loads it again when Redis has forgotten it (restart, fail-over). Scripts that free memory or keep
the service alive run even if Redis is above its maxmemory: their first line says so.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import hiredis
import msgspec

from server.queue.record import RecordDraft

ArgsT = TypeVar("ArgsT")
ResultT = TypeVar("ResultT")

FOLDER = Path(__file__).parent / "scripts"
PARTS = ("base", "history", "items", "taking", "endings", "admission", "records")
"""Files of functions that several scripts use, each of which may use those before it."""
NO_OWNER = "-"
"""The owner of jobs whose client cannot be distinguished, as the scripts spell it."""
LARGE_ARGUMENT_BYTES = 16 * 1024
"""A command with larger arguments is joined here: hiredis takes 180 µs for an image of 150 KB, this 7."""


@dataclass(frozen=True, eq=False)
class Script(Generic[ArgsT, ResultT]):
    """A Lua file and its types. ARGV[1] is the msgpack of its `args`. Messages are further arguments, since Lua's msgpack has no bytes.
    The answer is converted to `result`."""

    name: str
    args: type[ArgsT]
    result: type[ResultT]

    def arguments(self, args: ArgsT, messages: Iterable[bytes] = ()) -> list[bytes]:
        """Return ARGV."""
        return [msgspec.msgpack.encode(args), *messages]

    def read(self, answer: object) -> ResultT:
        """Return what Redis answered, as the script's type."""
        return msgspec.convert(answer, self.result)

    @cached_property
    def source(self) -> str:
        """The script after the statements of the parts that it uses. Redis creates all functions of a script at each call."""
        flags, body = _read(self.name).split("\n", 1)
        used = _words(body)
        for statement, names in reversed(_statements()):
            if names & used:
                body = statement + body
                used |= _words(statement)
        return f"{flags}\n{body}"

    @cached_property
    def sha(self) -> str:
        """The argument of EVALSHA."""
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


def encode_command(arguments: tuple[Any, ...]) -> bytes:
    if not any(isinstance(word, bytes | memoryview) and len(word) > LARGE_ARGUMENT_BYTES for word in arguments):
        packed: bytes = hiredis.pack_command(arguments)
        return packed
    encoded = [memoryview(word if isinstance(word, bytes | memoryview) else str(word).encode()) for word in arguments]
    return b"".join([b"*%d\r\n" % len(encoded), *(part for word in encoded for part in (b"$%d\r\n" % word.nbytes, word, b"\r\n"))])


@cache
def _statements() -> list[tuple[str, set[str]]]:
    """Return each statement of the parts, with the names that it declares."""
    code = "".join(re.sub(r"(?m)^(--.*)?\n", "", _read(f"parts/{part}")) for part in PARTS)
    return [(one, _words(one.partition("=")[0].partition("(")[0])) for one in re.split(r"(?m)^(?=local )", code) if one]


def _words(lua: str) -> set[str]:
    """Return the words that may be names of variables, which those of fields and comments are not."""
    return set(re.findall(r"(?<![.\w])[A-Za-z_]\w*", re.sub(r"--.*|'[^'\n]*'", "", lua))) - {"local", "function"}


def _read(name: str) -> str:
    return (FOLDER / f"{name}.lua").read_text()


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
    """Capacity that a gateway has reserved: for all, for a claim's owner, for work of priority low, and for the claim's own request."""

    all: QueueAmount
    own: QueueAmount
    low: QueueAmount
    before: QueueAmount


class Claim(msgspec.Struct, frozen=True):
    """Capacity that a request needs."""

    owner: str = NO_OWNER
    """These three are as in `QueuedJob`."""
    takes_long: bool = False
    low: bool = False
    max_items: int = 0
    """Maximum number of unfinished items of the owner, by its API key; 0: no limit of its own."""
    items: int = 0
    nbytes: int = 0
    work_ms: int = 0
    takes: bool = False
    """Whether it counts for the next claims of the same call."""
    promised: Promises | None = None
    """None: the call brings its jobs."""


class AdmissionChecks(msgspec.Struct, frozen=True):
    bounds: Bounds
    claims: list[Claim]


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """The reason why a claim is refused, or that it is admitted."""

    reason: bytes = b""
    """See `parts/admission.lua`; also `late`, and `unstaged`: a staged message is missing. Empty: admitted."""
    wait_ms: int = 0
    """Time until there is capacity, estimated from the unfinished work."""
    items: int = 0
    """Usage of the exceeded bound. If admitted: how much more would be, or how many jobs wait before those that were queued."""
    nbytes: int = 0
    work_ms: int = 0
    max_items: int = 0
    """The exceeded bound."""
    max_nbytes: int = 0


class Refused(Exception):
    """429 or 413: the queue has no capacity. The outcome holds the usage and the exceeded bound."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(str(outcome))
        self.reason = outcome.reason.decode()
        """A word of `parts/admission.lua`, or `memory`: Redis has none left."""
        self.outcome = outcome

    @property
    def retry_after(self) -> int:
        """Seconds until the exceeded bound is free, estimated from the unfinished work."""
        return max(1, math.ceil(self.outcome.wait_ms / 1000))


class DeadlineExceeded(Exception):
    """504: the deadline had passed before the jobs were queued."""


class RecordLost(Exception):
    """Another Redis took this job, and has lost it."""


class IdempotencyConflict(Exception):
    """The idempotency key belongs to another request."""


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
    """Id, which starts with the epoch of the Redis for which it was made."""
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
    """`Failure.kind`; empty if it did not fail, or no client waits."""
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
    jobs: list[EndedRow]


class ProgressRow(HeldRow, frozen=True):
    done: int
    total: int
    unit: str
    preview: bool


class ReturnedRow(HeldRow, frozen=True):
    """A job that a worker returns to the queue."""

    alone: bool


def parse_whole_number(text: bytes) -> int:
    """Return a whole number as Opsin's processes write them; 0 for anything else, which other programs may have written."""
    return int(text) if len(text) < 16 and text.isdigit() else 0
