"""The executor of jobs of several steps: `Stepwise` keeps the state of each job and takes the next step of given ones.

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
    ComputedBatch,
    DepartedJobs,
    FailedJob,
    JobOutputs,
    JobReport,
    Outcome,
    Reports,
    Streams,
    read_arrays,
    run_with_bisection,
    with_returned_arrays,
)

REPORT_INTERVAL_S = 0.2
"""Time in seconds between two reports of one job."""
MAX_START_S = 3600.0
"""Maximum credible time to start a job, in seconds."""
AVERAGING_WINDOW_JOBS = 16
"""Approximate number of jobs over which the numbers of steps and the times to start are averaged."""


@dataclass(frozen=True)
class TypicalJob:
    """A typical job, as loading saw it."""

    cost: Annotated[float, Meta(gt=0)] = 1.0
    """Cost of its first step."""
    total: Annotated[int, Meta(ge=1)] = 1
    """Number of its steps."""
    nbytes: Annotated[int, Meta(ge=0)] = 0
    """Bytes of its state."""
    start_seconds: Annotated[float, Meta(ge=0, lt=MAX_START_S)] = 0.0
    """Time to start it, in seconds."""
    step_seconds: Annotated[float, Meta(ge=0)] = 0.0
    """Time of its first step, in seconds."""


@dataclass(frozen=True)
class ResidentJob:
    """A job between two of its steps."""

    state: JobState
    batch_wait: float
    """Time from the pull to the start, in seconds."""
    inference: float
    """Time on the device so far, in seconds."""
    reported: float
    """Monotonic seconds of the last report."""
    last_reported: tuple[int, int]
    """Steps taken and steps in all, in the last report: a job that waits for frames has nothing new to report."""
    nbytes: int
    """Bytes of the state."""


class Stepwise:
    """The executor of a bundle whose jobs take several steps."""

    def __init__(self, model: LoadedStepwiseModel, device: torch.device, typical_job: TypicalJob | None = None) -> None:
        self.model = model
        self.typical_job = typical_job or TypicalJob()
        self._streams = Streams(device)
        self.residents: dict[tuple[str, str], ResidentJob] = {}
        """Jobs that have started and not ended, by stream and entry id."""
        self.nbytes = 0
        """Bytes of all states."""
        self.state_bytes = self.typical_job.nbytes
        """Expected bytes of one more job: those of the largest state so far."""
        self.mean_total = float(self.typical_job.total)
        """Mean number of steps of the jobs that ended lately."""
        self.start_seconds = self.typical_job.start_seconds
        """Mean time to start a job, in seconds, of the jobs that started lately."""
        self._lock = threading.Lock()

    @property
    def unit(self) -> str:
        return self.model.unit

    def weight(self, job: Delivery) -> float:
        """Return the cost of the next step in typical jobs; 1 for a job that has not started, unless the model knows better."""
        resident = self.residents.get(_key(job))
        if resident is not None:
            return self.model.cost(resident.state) / self.typical_job.cost
        return 1.0 if self.model.first_cost is None else self.model.first_cost / self.typical_job.cost

    def remaining(self, job: Delivery) -> int | None:
        """Return the number of steps to take; None if the job has not started."""
        resident = self.residents.get(_key(job))
        return None if resident is None else resident.state.total - resident.state.done

    def all_started(self, jobs: list[Delivery]) -> bool:
        return all(_key(job) in self.residents for job in jobs)

    def run(self, jobs: list[Delivery]) -> Iterator[Outcome]:
        """Take one step of each job. Jobs that have not started start before it and are reported at once."""
        new_jobs = [job for job in jobs if _key(job) not in self.residents]
        started = [job for job in jobs if _key(job) in self.residents]
        for outcome in run_with_bisection(new_jobs, self._start, self._streams.free_memory) if new_jobs else ():
            if isinstance(outcome, ComputedBatch):
                started += outcome.jobs
                yield Reports(outcome.reports)
            else:
                yield outcome
        for outcome in run_with_bisection(started, self._step, self._streams.free_memory) if started else ():
            if isinstance(outcome, FailedJob):
                self.drop([outcome.job])
                yield DepartedJobs([outcome.job], "failed")
            yield outcome

    def drop(self, jobs: list[Delivery]) -> None:
        with self._lock:
            for job in jobs:
                self._forget(job)

    def _start(self, jobs: list[Delivery]) -> ComputedBatch:
        started = time.monotonic()
        arrays = [{name: np.array(array) for name, array in read_arrays(job.job).items()} for job in jobs]
        with self._streams.current():
            states = self.model.start(arrays, [job.job.options for job in jobs])
        seconds = time.monotonic() - started
        with self._lock:
            for job, state in zip(jobs, states, strict=True):
                self._keep(job, ResidentJob(state, started - job.pulled_at, seconds, started, _step_counts(state), state.nbytes))
            self.start_seconds += (seconds / len(jobs) - self.start_seconds) * min(1.0, len(jobs) / AVERAGING_WINDOW_JOBS)
        return ComputedBatch(jobs, started, seconds, [], jobs, [self._report(job, state) for job, state in zip(jobs, states, strict=True)])

    def _step(self, jobs: list[Delivery]) -> ComputedBatch:
        started = time.monotonic()
        residents = [self.residents[_key(job)] for job in jobs]
        weight = sum(self.model.cost(resident.state) for resident in residents) / self.typical_job.cost
        due = [started >= resident.reported + REPORT_INTERVAL_S for resident in residents]
        with self._streams.current():
            outcomes = self.model.step(
                [resident.state for resident in residents], [job.job.previews and now for job, now in zip(jobs, due, strict=True)]
            )
        seconds = time.monotonic() - started
        has_stepped = [not _made_no_progress(resident, outcome) for resident, outcome in zip(residents, outcomes, strict=True)]
        computed = ComputedBatch(
            jobs,
            started,
            seconds,
            [],
            weight=weight,
            started_jobs=sum(moved and resident.state.done == 0 for resident, moved in zip(residents, has_stepped, strict=True)),
            made_no_progress=not any(has_stepped),
        )
        with self._lock:
            for job, resident, now, outcome in zip(jobs, residents, due, outcomes, strict=True):
                inference = resident.inference + seconds
                if isinstance(outcome, StepOutputs):
                    self._forget(job)
                    self.mean_total += (resident.state.done + 1 - self.mean_total) / AVERAGING_WINDOW_JOBS
                    computed.answers.append(JobOutputs(job, with_returned_arrays(job.job, outcome.outputs), resident.batch_wait, inference))
                    continue
                state, news = outcome.state, now and _step_counts(outcome.state) != resident.last_reported
                reported, counts = (started, _step_counts(state)) if news else (resident.reported, resident.last_reported)
                self._keep(job, ResidentJob(state, resident.batch_wait, inference, reported, counts, state.nbytes))
                computed.unfinished.append(job)
                if news:
                    computed.reports.append(self._report(job, state, outcome.preview))
        return computed

    def _keep(self, job: Delivery, resident: ResidentJob) -> None:
        before = self.residents.get(_key(job))
        self.residents[_key(job)] = resident  # replaced, not removed and added: other threads read it without the lock
        self.nbytes += resident.nbytes - (before.nbytes if before is not None else 0)
        self.state_bytes = max(self.state_bytes, resident.nbytes)

    def _forget(self, job: Delivery) -> None:
        if (resident := self.residents.pop(_key(job), None)) is not None:
            self.nbytes -= resident.nbytes

    def _report(self, job: Delivery, state: JobState, preview: Mapping[str, NDArray[Any]] | None = None) -> JobReport:
        unit = getattr(state, "unit", self.unit)  # states of models with several kinds of steps have their own
        return JobReport(job, state.done, state.total, unit, dict(preview or {}))


def _made_no_progress(resident: ResidentJob, outcome: StepProgress | StepOutputs) -> bool:
    """Return whether a job has taken no step: its state is the same object."""
    return isinstance(outcome, StepProgress) and outcome.state is resident.state


def _step_counts(state: JobState) -> tuple[int, int]:
    return state.done, state.total


def _key(job: Delivery) -> tuple[str, str]:
    return job.stream, job.entry_id
