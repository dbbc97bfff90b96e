"""Jobs of several steps: `Stepwise` keeps how far each has come, and takes the next step of those that it is given.

States are values (`models.layers.stepwise`): a step that raises leaves the old ones as they were, so halves of the batch can take it again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray

from models.layers.stepwise import JobState
from models.loading import LoadedStepwiseModel, StepOutputs, StepProgress
from server.queue.worker.delivery import Delivery
from server.worker.executors import (
    Computed,
    FailedJob,
    JobOutputs,
    Left,
    Outcome,
    Report,
    Reports,
    Streams,
    halving,
    read_arrays,
    with_returned,
)

REPORT_EVERY = 0.2
"""Seconds between two reports of one job."""
LONGEST_START = 3600.0
"""Seconds that are still believed."""
MEMORY = 16
"""Number of jobs over which the mean number of steps, and of seconds to start, is taken, roughly."""


@dataclass(frozen=True)
class Usual:
    """A usual job, as warm-up saw it."""

    cost: Annotated[float, Meta(gt=0)] = 1.0
    """Cost of its first step."""
    total: Annotated[int, Meta(ge=1)] = 1
    """Number of its steps."""
    nbytes: Annotated[int, Meta(ge=0)] = 0
    """Bytes of its state."""
    start_seconds: Annotated[float, Meta(ge=0, lt=LONGEST_START)] = 0.0
    """Seconds to start it."""
    step_seconds: Annotated[float, Meta(ge=0)] = 0.0
    """Seconds of its first step; 0 in measurements that were kept by earlier versions."""


@dataclass(frozen=True)
class Resident:
    """A job between two of its steps."""

    state: JobState
    batch_wait: float
    """Seconds from the pull to the start."""
    inference: float
    """Seconds on the device so far."""
    reported: float
    """Monotonic seconds of the last report."""
    told: tuple[int, int]
    """Steps taken and steps in all, as the last report said: a job that waits for its frames has nothing new to tell."""
    nbytes: int
    """Bytes of the state."""
    form: LoadedStepwiseModel
    """The model as it began with: in its number format."""


class Stepwise:
    """Takes steps of jobs of one bundle."""

    def __init__(self, model: LoadedStepwiseModel, device: torch.device, usual: Usual | None = None) -> None:
        self.model = model
        self.usual = usual or Usual()
        self._streams = Streams(device)
        self._residents: dict[tuple[str, str], Resident] = {}
        """By stream and entry id."""
        self.nbytes = 0
        """Bytes of all states that are kept."""
        self.state_bytes = self.usual.nbytes
        """Bytes to expect of one more job: those of the largest state seen."""
        self.mean_total = float(self.usual.total)
        """Steps of a job, of those that ended lately."""
        self.start_seconds = self.usual.start_seconds
        """Seconds to start a job, of those that started lately."""
        self._lock = threading.Lock()

    def change_form(self, model: LoadedStepwiseModel, usual: Usual) -> None:
        """From now on jobs start with this model, in another number format; those that have started end with theirs."""
        self.model, self.usual = model, usual

    @property
    def unit(self) -> str:
        return self.model.unit

    @property
    def residents(self) -> int:
        """Number of jobs that have started and not ended."""
        return len(self._residents)

    def trim(self, room: int, seconds: float) -> int:
        """Let the model forget what it keeps of ended jobs beyond `room` bytes or `seconds`. Returns the bytes that it still keeps."""
        return self.model.evict(room, seconds)

    def weight(self, job: Delivery) -> float:
        """Cost of the next step in usual jobs; 1 for a job that has not started, unless the model knows better."""
        resident = self._residents.get(_key(job))
        if resident is not None:
            return resident.form.cost(resident.state) / self.usual.cost
        return 1.0 if self.model.first_cost is None else self.model.first_cost / self.usual.cost

    def remaining(self, job: Delivery) -> int | None:
        """Number of steps to take; None: it has not started."""
        resident = self._residents.get(_key(job))
        return None if resident is None else resident.state.total - resident.state.done

    def all_started(self, jobs: list[Delivery]) -> bool:
        return all(_key(job) in self._residents for job in jobs)

    def run(self, jobs: list[Delivery]) -> Iterator[Outcome]:
        """One step of each job. Those that have not started start before it and are reported at once."""
        fresh = [job for job in jobs if _key(job) not in self._residents]
        started = [job for job in jobs if _key(job) in self._residents]
        for outcome in halving(fresh, self._start, self._streams.free_memory) if fresh else ():
            if isinstance(outcome, Computed):
                started += outcome.jobs
                yield Reports(outcome.reports)
            else:
                yield outcome
        forms: dict[int, list[Delivery]] = {}
        for job in started:
            forms.setdefault(id(self._residents[_key(job)].form), []).append(job)
        for alike in forms.values():
            for outcome in halving(alike, self._step, self._streams.free_memory):
                if isinstance(outcome, FailedJob):
                    self.drop([outcome.job])
                    yield Left([outcome.job], "failed")
                yield outcome

    def drop(self, jobs: list[Delivery]) -> None:
        with self._lock:
            for job in jobs:
                self._forget(job)

    def _start(self, jobs: list[Delivery]) -> Computed:
        started, model = time.monotonic(), self.model
        arrays = [{name: np.array(array) for name, array in read_arrays(job.job).items()} for job in jobs]
        with self._streams.current():
            states = model.start(arrays, [job.job.options for job in jobs])
        seconds = time.monotonic() - started
        with self._lock:
            for job, state in zip(jobs, states, strict=True):
                self._keep(job, Resident(state, started - job.pulled_at, seconds, started, _told(state), state.nbytes, model))
            self.start_seconds += (seconds / len(jobs) - self.start_seconds) * min(1.0, len(jobs) / MEMORY)
        return Computed(jobs, started, seconds, [], jobs, [self._report(job, state) for job, state in zip(jobs, states, strict=True)])

    def _step(self, jobs: list[Delivery]) -> Computed:
        started = time.monotonic()
        residents = [self._residents[_key(job)] for job in jobs]
        model = residents[0].form
        weight = sum(model.cost(resident.state) for resident in residents) / self.usual.cost
        due = [started >= resident.reported + REPORT_EVERY for resident in residents]
        with self._streams.current():
            outcomes = model.step(
                [resident.state for resident in residents], [job.job.previews and now for job, now in zip(jobs, due, strict=True)]
            )
        seconds = time.monotonic() - started
        stepped = [not _waits(resident, outcome) for resident, outcome in zip(residents, outcomes, strict=True)]
        computed = Computed(
            jobs,
            started,
            seconds,
            [],
            weight=weight,
            joined=sum(moved and resident.state.done == 0 for resident, moved in zip(residents, stepped, strict=True)),
            waited=not any(stepped),
        )
        with self._lock:
            for job, resident, now, outcome in zip(jobs, residents, due, outcomes, strict=True):
                inference = resident.inference + seconds
                if isinstance(outcome, StepOutputs):
                    self._forget(job)
                    self.mean_total += (resident.state.done + 1 - self.mean_total) / MEMORY
                    computed.answers.append(JobOutputs(job, with_returned(job.job, outcome.outputs), resident.batch_wait, inference))
                    continue
                state, news = outcome.state, now and _told(outcome.state) != resident.told
                reported, told = (started, _told(state)) if news else (resident.reported, resident.told)
                self._keep(job, Resident(state, resident.batch_wait, inference, reported, told, state.nbytes, model))
                computed.going_on.append(job)
                if news:
                    computed.reports.append(self._report(job, state, outcome.preview))
        return computed

    def _keep(self, job: Delivery, resident: Resident) -> None:
        before = self._residents.get(_key(job))
        self._residents[_key(job)] = resident  # others look at it without the lock: it is never gone in between
        self.nbytes += resident.nbytes - (before.nbytes if before is not None else 0)
        self.state_bytes = max(self.state_bytes, resident.nbytes)

    def _forget(self, job: Delivery) -> None:
        if (resident := self._residents.pop(_key(job), None)) is not None:
            self.nbytes -= resident.nbytes

    def _report(self, job: Delivery, state: JobState, preview: Mapping[str, NDArray[Any]] | None = None) -> Report:
        unit = getattr(state, "unit", self.unit)  # that of a job where a model takes steps of several kinds
        return Report(job, state.done, state.total, unit, dict(preview or {}))


def _waits(resident: Resident, outcome: StepProgress | StepOutputs) -> bool:
    """Return whether a job has taken no step: its state is the very one that it was."""
    return isinstance(outcome, StepProgress) and outcome.state is resident.state


def _told(state: JobState) -> tuple[int, int]:
    return state.done, state.total


def _key(job: Delivery) -> tuple[str, str]:
    return job.stream, job.entry_id
