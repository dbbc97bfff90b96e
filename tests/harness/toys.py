"""Jobs of several steps for tests: the null model's toy, whose answer tells whether every step was taken once and in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.bundle import Bundle
from models.loading import LoadedModel, LoadedSteps, load
from server.worker.executors import Arrays
from tests.harness.bundles import write_null

STEPS = (2, 5, 9)


def write_toy(root: Path, name: str = "toy", milliseconds: float = 0.0, steps: tuple[int, ...] = STEPS, width: int = 8) -> Bundle:
    return write_null(root, name, milliseconds=milliseconds, steps=steps, width=width)


def pixels(number: int, choice: int) -> np.ndarray:
    """(32, 32, 3) uint8, different for each number; `choice` is the index of its number of steps."""
    made = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
    made[0, 0, 0] = choice
    return made


def steps_of(bundle: Bundle) -> LoadedSteps:
    steps = load(bundle).steps
    assert steps is not None
    return steps


def answer_alone(model: LoadedModel | LoadedSteps, picture: np.ndarray, seed: int = 0) -> Arrays:
    """What a job is answered that takes all its steps by itself."""
    steps = model.steps if isinstance(model, LoadedModel) else model
    assert isinstance(steps, LoadedSteps)
    [state] = steps.start([{"pixels": picture}], [{"seed": seed}])
    while True:
        [outcome] = steps.step([state], [False])
        if hasattr(outcome, "outputs"):
            return dict(outcome.outputs)
        state = outcome.state
