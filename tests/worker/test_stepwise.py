"""Jobs that take several steps: they join and leave between steps, and no answer depends on the other jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from models.bundle import BundleError
from models.layers.stepwise import JobState
from models.loading import LoadedStepwiseModel, StepOutputs, StepProgress, load
from server.queue.messages import Array
from server.queue.worker.delivery import Delivery
from server.worker import stepwise
from server.worker.executors import Arrays, ComputedBatch, FailedJob, JobOutputs, JobReport, Reports, TooLarge
from server.worker.stepwise import Stepwise
from tests.support.bundles.vit import STEPS, answer_alone, pixels, steps_of, write_null, write_toy
from tests.support.queue import delivery

CPU = torch.device("cpu")
SENT_BACK = {"unread": ["file"], "returned": ["file"]}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> LoadedStepwiseModel:
    return steps_of(write_toy(tmp_path_factory.mktemp("bundles")))


def job(number: int, choice: int, seed: int = 0, **of_job: Any) -> Delivery:
    made = delivery(bundle="toy@1", pixels=pixels(number, choice))
    return replace(made, job=msgspec.structs.replace(made.job, options={"seed": seed}, **of_job))


def with_file(made: Delivery) -> Delivery:
    """Add a file that no model reads to a job, which wants it back."""
    arrays = {**made.job.arrays, "file": Array.from_numpy(np.arange(10_000, dtype=np.uint8))}
    return replace(made, job=msgspec.structs.replace(made.job, arrays=arrays, options={**made.job.options, **SENT_BACK}))


def step(executor: Stepwise, jobs: list[Delivery]) -> tuple[list[JobOutputs], list[Delivery]]:
    """Take one step of these jobs; return the answers and the unfinished jobs."""
    computed = [result for result in executor.run(jobs) if isinstance(result, ComputedBatch)]
    return [answer for batch in computed for answer in batch.answers], [job for batch in computed for job in batch.unfinished]


def same(answer: Arrays, expected: Arrays) -> None:
    np.testing.assert_allclose(answer["logits"], expected["logits"], rtol=0, atol=1e-5)


def test_jobs_join_and_leave_between_steps_with_same_answers(toy: LoadedStepwiseModel) -> None:
    executor = Stepwise(toy, CPU)
    jobs = [job(number, number % 3, seed=number) for number in range(9)]
    answers: dict[str, Arrays] = {}
    steps_taken = dict.fromkeys((one.job.id for one in jobs), 0)
    waiting, unfinished = list(jobs), list[Delivery]()
    while waiting or unfinished:
        unfinished += [waiting.pop() for _ in range(2) if waiting]  # two more join at each step
        for one in unfinished:
            steps_taken[one.job.id] += 1
        done, unfinished = step(executor, unfinished)
        answers |= {answer.job.job.id: answer.outputs for answer in done}
    assert [steps_taken[one.job.id] for one in jobs] == [STEPS[number % 3] for number in range(9)]
    for number, one in enumerate(jobs):
        same(answers[one.job.id], answer_alone(toy, pixels(number, number % 3), seed=number))
    assert not executor.residents and executor.nbytes == 0


def test_the_toy_notices_lost_repeated_and_foreign_steps(toy: LoadedStepwiseModel) -> None:
    """Else the other tests would prove nothing."""
    [state] = toy.start([{"pixels": pixels(1, 1)}], [{"seed": 0}])
    expected = answer_alone(toy, pixels(1, 1))["logits"]
    for lost in (replace(state, done=1), replace(state, total=state.total + 1)):
        progress: Any = lost
        while not hasattr(progress, "outputs"):
            [progress] = toy.step([progress], [False])
            progress = getattr(progress, "state", progress)
        assert np.abs(progress.outputs["logits"] - expected).max() > 0.5
    assert np.abs(answer_alone(toy, pixels(1, 1), seed=1)["logits"] - expected).max() > 0.5


def test_a_dropped_job_starts_again_and_ends_in_the_same_answer(toy: LoadedStepwiseModel) -> None:
    executor, one = Stepwise(toy, CPU), job(5, 2)
    for _ in range(3):
        step(executor, [one])
    executor.drop([one])
    assert executor.remaining(one) is None
    answers: list[JobOutputs] = []
    while not answers:
        answers, _ = step(executor, [one])
    same(answers[0].outputs, answer_alone(toy, pixels(5, 2)))


class Slow:
    """The toy, whose jobs make no progress in the next `waits` steps."""

    def __init__(self, toy: LoadedStepwiseModel) -> None:
        self._toy = toy
        self.waits = 0
        self.unit, self.start = toy.unit, toy.start

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[StepProgress | StepOutputs]:
        if self.waits:
            self.waits -= 1
            return [StepProgress(state, None) for state in states]
        return self._toy.step(states, previews)

    def cost(self, state: JobState) -> float:
        return 0.1 if self.waits else 1.0


def test_waiting_job_joins_no_step_and_costs_no_step_time(toy: LoadedStepwiseModel) -> None:
    slow, one = Slow(toy), job(1, 1, seed=1)
    executor = Stepwise(slow, CPU)
    slow.waits = 2
    batches = [result for _ in range(4) for result in executor.run([one]) if isinstance(result, ComputedBatch)]
    assert [(step.made_no_progress, step.started_jobs) for step in batches] == [(True, 0), (True, 0), (False, 1), (False, 0)]


def test_a_job_that_waits_is_reported_when_it_has_taken_a_step(toy: LoadedStepwiseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepwise, "REPORT_INTERVAL_S", 0.0)
    slow, one = Slow(toy), job(1, 1, seed=1)
    executor = Stepwise(slow, CPU)
    slow.waits = 3
    results = [result for _ in range(5) for result in executor.run([one])]
    assert [report.done for result in results for report in getattr(result, "reports", ())] == [0, 1, 2]


class Fragile:
    """The toy, but a step or a start with a certain job in it fails; and there is room for `room` jobs."""

    unit = "steps"

    def __init__(self, toy: LoadedStepwiseModel, *, at_start: bool = False, room: int = 100) -> None:
        self._toy = toy
        self._at_start = at_start
        self._room = room

    def start(self, arrays: Sequence[Mapping[str, Any]], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        if self._at_start and any(chosen["seed"] == 13 for chosen in options):
            raise RuntimeError("cannot start")
        return self._toy.start(arrays, options)

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[StepProgress | StepOutputs]:
        if len(states) > self._room:
            raise torch.OutOfMemoryError("no room")
        outcomes = self._toy.step(states, previews)
        if not self._at_start and any(state.total == STEPS[0] and state.done == 1 for state in states):
            raise RuntimeError("cannot step")  # only once it has computed
        return outcomes

    def cost(self, state: JobState) -> float:
        return 1.0

    def trim(self, room: int, seconds: float) -> int:
        return 0


@pytest.mark.parametrize("at_start", [True, False])
def test_culprit_of_failing_step_is_refused_alone(toy: LoadedStepwiseModel, at_start: bool) -> None:
    executor = Stepwise(Fragile(toy, at_start=at_start), CPU)
    culprit = job(3, 2 if at_start else 0, seed=13)
    jobs = [job(number, 1) for number in range(3)] + [culprit] + [job(number, 1) for number in range(10, 14)]
    results = [list(executor.run(jobs))]
    unfinished = [one for result in results[0] if isinstance(result, ComputedBatch) for one in result.unfinished]
    answers: list[JobOutputs] = []
    while unfinished:
        results.append(list(executor.run(unfinished)))
        unfinished = [one for result in results[-1] if isinstance(result, ComputedBatch) for one in result.unfinished]
        answers += [answer for result in results[-1] if isinstance(result, ComputedBatch) for answer in result.answers]
    assert [result.job for batch in results for result in batch if isinstance(result, FailedJob)] == [culprit]
    assert {answer.job.job.id for answer in answers} == {one.job.id for one in jobs if one is not culprit}
    for answer in answers:
        same(answer.outputs, answer_alone(toy, answer.job.job.arrays["pixels"].to_numpy().copy()))
    assert not executor.residents


def test_a_step_that_does_not_fit_into_memory_is_taken_in_halves(toy: LoadedStepwiseModel) -> None:
    jobs = [job(number, 1) for number in range(8)]
    results = list(Stepwise(Fragile(toy, room=4), CPU).run(jobs))
    assert [len(result.jobs) for result in results if isinstance(result, TooLarge)] == [8]
    assert [result.unfinished for result in results if isinstance(result, ComputedBatch)] == [jobs[:4], jobs[4:]]


class TestReports:
    def reports(self, executor: Stepwise, one: Delivery) -> list[JobReport]:
        reports: list[JobReport] = []
        unfinished = [one]
        while unfinished:
            results = list(executor.run(unfinished))
            reports += [report for result in results if isinstance(result, Reports | ComputedBatch) for report in result.reports]
            unfinished = [job for result in results if isinstance(result, ComputedBatch) for job in result.unfinished]
        return reports

    def test_first_report_is_at_start_and_next_ones_are_rare(self, toy: LoadedStepwiseModel) -> None:
        assert [(report.done, report.total, report.unit) for report in self.reports(Stepwise(toy, CPU), job(1, 2))] == [(0, 9, "steps")]

    def test_slow_steps_are_all_reported_and_previews_on_request(self, toy: LoadedStepwiseModel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stepwise, "REPORT_INTERVAL_S", 0.0)
        reports = self.reports(Stepwise(toy, CPU), job(1, 1))
        assert [(report.done, report.total) for report in reports] == [(done, 5) for done in range(5)]
        assert not any(report.preview for report in reports)
        with_previews = self.reports(Stepwise(toy, CPU), job(1, 1, previews=True))
        assert [sorted(report.preview) for report in with_previews] == [[]] + [["logits", "tokens"]] * 4


def test_a_config_without_steps_is_one_forward_pass(tmp_path: Path) -> None:
    assert load(write_null(tmp_path)).steps is None


@pytest.mark.parametrize(("field", "value"), [("steps", [10, 0]), ("width", -1)])
def test_a_toy_that_makes_no_sense_is_refused(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(BundleError, match=field):
        load(write_null(tmp_path, **{field: value}))


def test_file_no_model_reads_is_not_state_and_is_returned(toy: LoadedStepwiseModel) -> None:
    executor, plain = Stepwise(toy, CPU), Stepwise(toy, CPU)
    jobs, bare = [with_file(job(1, 0))], [job(1, 0)]
    answers: list[JobOutputs] = []
    while not answers:
        answers, jobs = step(executor, jobs)
        _, bare = step(plain, bare)
        assert executor.nbytes == plain.nbytes
    np.testing.assert_array_equal(answers[0].outputs["file"], np.arange(10_000, dtype=np.uint8))
    same(answers[0].outputs, answer_alone(toy, pixels(1, 0)))
