"""A client's job that outlives its gateway, as Redis keeps it: `record:<id>`, its events, and why one is not admitted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import msgspec

from server.queue.messages import Failure, Priority

State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled")
OPEN_STATES: frozenset[str] = frozenset({"queued", "running"})
RECORD_BYTES = 5500
"""A record takes so much without its result, as `parts/records.lua` counts it."""
FINAL_EVENTS: frozenset[str] = frozenset(STATES[2:])

_ID = re.compile(r"([0-9a-f]{8})-[0-9a-f]{32}")


def epoch_of(record_id: str) -> str:
    """Return which cell and Redis took the job; empty for an id that is not valid."""
    match = _ID.fullmatch(record_id)
    return match[1] if match else ""


def rfc3339(unix_ms: int) -> str:
    """Format a time for clients: in UTC, to the millisecond."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class RecordDraft(msgspec.Struct, frozen=True, kw_only=True):
    """A client's job before it is admitted."""

    task: str
    bundle: str
    digest: str
    part: str
    """The part that errors name."""
    items: int
    """Number of items, whose jobs come first."""
    counted: int
    """Total of the progress if jobs report no steps, or there are several: it is reached when all jobs have ended."""
    counted_unit: str
    """`images` or `texts`."""
    priority: Priority
    request_id: str
    prepare_ms: float
    fingerprint: str
    """SHA-256 of what was asked."""
    idem: str = ""
    """SHA-256 of the name of the API key and the client's Idempotency-Key; empty: there is none."""
    key_name: str = ""
    """The name of the API key that it was sent with, whom alone it answers; empty: of none."""
    bound: int
    """Maximum number of bytes of its results and its latest preview."""
    webhook: str = ""
    """URL to notify of its end; empty: none."""
    webhook_events: str = ""
    """Ends to notify of, separated by commas."""
    traceparent: str = ""
    """The request's span; empty: it has no trace."""


class JobProgress(msgspec.Struct, frozen=True):
    """Progress of a client's job, in `unit`s such as steps, levels, windows or images."""

    done: int
    total: int
    unit: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Times are Unix milliseconds on Redis' clock."""

    id: str
    state: State
    task: str
    bundle: str
    digest: str
    part: str = ""
    items: int = 0
    """Number of items, whose jobs come first; 0: those of an earlier version, a job each."""
    request_id: str
    prepare_ms: float
    count: int
    """Jobs of the queue that it stands for."""
    results: int
    """Size of the results in bytes."""
    created_ms: int
    started_ms: int | None = None
    finished_ms: int | None = None
    place: int | None = None
    """How many of its stream wait before it, where that is known."""
    progress: JobProgress | None = None
    failure: Failure | None = None
    failed_index: int | None = msgspec.field(default=None, name="index")
    """The index of the job that failed, where it was one."""
    events: int = 0
    """Number of the last event."""
    key_name: str = ""
    """The name of the API key that it was sent with, whom alone it answers; empty: of none."""
    traceparent: str = ""
    """The request's span; empty: it has no trace."""

    @property
    def job_ids(self) -> list[str]:
        return [f"{self.id}-{index}" for index in range(self.count)]

    @staticmethod
    def from_values(record_id: str, place: int, values: Sequence[bytes | None]) -> Record:
        """Read it from the values of NAMES. Raises msgspec.ValidationError for what no script wrote."""
        fields: dict[str, object] = {name: value.decode() for name, value in zip(NAMES, values, strict=True) if value}
        fields |= {"id": record_id, "place": place if place >= 0 else None}
        if "unit" in fields:
            fields["progress"] = fields  # done, total, unit
        if "failure" in fields:
            fields["failure"] = {"kind": fields["failure"], "detail": fields["detail"]}
        return msgspec.convert(fields, Record, strict=False)


NAMES = (*(field.encode_name for field in msgspec.structs.fields(Record)), "done", "total", "unit", "detail")
"""Fields of the hash that a Record is read from: all but the plan, which may be large."""


class RecordEvent(NamedTuple):
    """`data` is JSON for `queued`, `progress` and `cancelled`, Unix milliseconds for `started`, the worker's msgpack message for `preview`;
    the rest stands in the record."""

    number: int
    name: str
    data: bytes


class EventBatch(NamedTuple):
    """Events that a reader did not know yet."""

    state: State | None
    """None: there is no such record."""
    events: list[RecordEvent]


@dataclass(frozen=True)
class RecordsLoad:
    """Number of clients' jobs in each state, and the bytes of their results."""

    counts: Mapping[str, int] = field(default_factory=dict)
    ended: Mapping[str, int] = field(default_factory=dict)
    """How many have ended in each state since Redis began, also those that are kept no longer. `lost`: those that failed by `job-lost`."""
    result_bytes: int = 0
