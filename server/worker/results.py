"""What comes out of a batch, on its way from an executor to the queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from server.queue.delivery import Delivery
from server.queue.job import Job

Arrays = dict[str, NDArray[Any]]


def read_arrays(job: Job) -> Arrays:
    """The arrays of a job that its model reads: those that its options call `unread` stay out of batches, states and devices."""
    unread = job.options.get("unread", ())
    return {name: array.to_numpy() for name, array in job.arrays.items() if name not in unread}


def with_returned(job: Job, outputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """The outputs, and those arrays of the job that its options want `returned`: whoever presents the answer does not have them."""
    returned = job.options.get("returned", ())
    return {**outputs, **{name: job.arrays[name].to_numpy() for name in returned if name in job.arrays}}


@dataclass(frozen=True)
class Answer:
    """The outputs of one job, without a batch dimension."""

    job: Delivery
    outputs: Arrays
    batch_wait: float
    """Seconds from the pull to the start of its first batch."""
    inference: float
    """Seconds on the device, in all its batches."""


@dataclass(frozen=True)
class Report:
    """How far a job has come."""

    job: Delivery
    done: int
    total: int
    unit: str
    preview: Arrays = field(default_factory=dict)
    """What can be shown already; empty: nothing."""


@dataclass(frozen=True)
class Computed:
    """A batch that was computed: all of a one-shot job, one step of a stepwise one."""

    jobs: list[Delivery]
    started: float
    """Monotonic seconds."""
    seconds: float
    answers: list[Answer]
    """Of those that came to their end."""
    going_on: list[Delivery] = field(default_factory=list)
    """The others: more steps follow."""
    reports: list[Report] = field(default_factory=list)
    """Of those of them that are to be told how far they have come."""
    weight: float = 0.0
    """Cost of the batch in usual jobs; 0: its number of jobs."""
    joined: int = 0
    """Number of jobs that took their first step."""
    cold: bool = False
    """Whether no batch of its shape had run before: it also paid for preparing the shape."""

    @property
    def size(self) -> int:
        """Of the batch, in usual jobs."""
        return round(self.weight) or len(self.jobs)


@dataclass(frozen=True)
class Reports:
    """How far jobs are that begin now, or have just started."""

    reports: list[Report]


@dataclass(frozen=True)
class Refused:
    """A job that made the model fail, by itself."""

    job: Delivery
    error: Exception


@dataclass(frozen=True)
class TooLarge:
    """A batch that did not fit into memory; its halves follow."""

    jobs: list[Delivery]

    @property
    def size(self) -> int:
        return len(self.jobs)


@dataclass(frozen=True)
class Unserved:
    """Jobs of a bundle that was unloaded while they waited."""

    jobs: list[Delivery]


@dataclass(frozen=True)
class Left:
    """Jobs of several steps that left between two of them."""

    jobs: list[Delivery]
    how: Literal["failed", "unwanted", "handed_back"]


Result = Computed | Reports | Refused | TooLarge | Unserved | Left
