"""What a bundle is measured with: sample jobs of its task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from models.bundle import BundleError, BundleSpec
from models.layers.steps import State
from models.loading import LoadedModel
from models.merge_schedule import MergeSchedule
from server.tasks.registry import TASKS
from server.worker.layout import Layout
from server.worker.stepwise import Usual

T = TypeVar("T")
Run = Callable[[Layout, Callable[[], Any]], float]
"""How a batch is run while measuring, as by `run_at_once`."""


def result_of(run: Run, layout: Layout, work: Callable[[], T]) -> T:
    """What `work` returns, of one slot."""
    results: list[T] = []
    run(replace(layout, slots=1), lambda: results.append(work()))
    return results[0]


def sample(spec: BundleSpec, size: int) -> dict[str, np.ndarray]:
    """What the task calls a usual job, `size` times. Raises BundleError."""
    task = TASKS.get(spec.task)
    if task is None:
        raise BundleError(f"{spec.id}: task {spec.task} is not served yet by this version")
    return {name: np.stack([array] * size) for name, array in task.sample(spec).items()}


def usual_schedule(spec: BundleSpec) -> MergeSchedule:
    rung = spec.rung(spec.default_rung) if spec.default_rung else None
    return rung.merge if rung else MergeSchedule.off()


def per_block(model: LoadedModel, schedule: MergeSchedule) -> Sequence[int]:
    return schedule.expand(model.depth)


def started(model: LoadedModel, size: int, schedule: MergeSchedule) -> list[State]:
    """Jobs before their first step."""
    assert model.steps is not None
    jobs = [{name: rows[i] for name, rows in sample(model.spec, size).items()} for i in range(size)]
    return model.steps.start(jobs, [{"merge": per_block(model, schedule)}] * size)


def see_usual(model: LoadedModel, layout: Layout, run: Run) -> Usual:
    """Start a usual job and take its first step, in one slot."""
    assert model.steps is not None
    began = time.monotonic()
    [state] = result_of(run, layout, lambda: started(model, 1, usual_schedule(model.spec)))
    seconds = time.monotonic() - began
    result_of(run, layout, partial(model.steps.step, [state], [False]))
    return Usual(model.steps.cost(state), state.total, state.nbytes, seconds)
