"""A worker that can be killed by its input. Run as a script: `python -m tests.support.poison_worker`.

Its architecture exists in this process only: a picture whose first pixel is white kills it, as a fault in a native library would; one whose
first pixel is blue makes it hang, one whose first pixel is green takes its time, and a red one raises what `tests.fake_cuda` is ordered to.
Every other picture is answered with its own mean.
With `steps` in the bundle's config a job takes several, and the white picture kills the worker at its third.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models import registry
from models.layers.stepwise import InProgress, JobState, StepCompletion, StepwiseModel, Tensors
from models.registry import Architecture, BundleDefaults, System
from models.systems.null.steps import NullConfig, NullSteps
from server.settings import load
from server.worker.main import run_worker
from tests.fake_cuda.device import raise_ordered

POISON = (255, 255, 255)
HANGS = (0, 0, 255)
SLOW = (0, 255, 0)
"""Takes as many tenths of a second as the first channel of the second pixel says."""
COMMAND = ("tests.support.poison_worker",)
"""Command for `tests.support.live_service.worker_process`."""


FragileConfig = NullConfig


class Fragile(nn.Module):
    def __init__(self, config: NullConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) → logits (B, classes)."""
        first = [tuple(corner.tolist()) for corner in pixels[:, 0, 0]]
        if POISON in first:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANGS in first:
            threading.Event().wait()
        raise_ordered(first, pixels.device)
        if SLOW in first:
            time.sleep(int(pixels[first.index(SLOW), 0, 1, 0]) / 10)
        return pixels.float().mean(dim=(1, 2, 3))[:, None].expand(-1, self.config.classes)


def classify(model: nn.Module, arrays: dict[str, Tensor], _options: object, _preprocess: object) -> dict[str, Tensor]:
    logits = model(arrays["pixels"])
    return {"logits": logits, "tokens": torch.ones(len(logits), 2, dtype=torch.int32)}


class FragileSteps(NullSteps):
    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        poisonous = [tuple(job["pixels"][0, 0].tolist()) == POISON for job in arrays]
        return [MarkedModel(state, bad) for state, bad in zip(super().start(arrays, options), poisonous, strict=True)]

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | StepCompletion]:
        marked = [state for state in states if isinstance(state, MarkedModel)]
        if any(state.poisonous and state.done == 2 for state in marked):
            os.kill(os.getpid(), signal.SIGKILL)
        outcomes = super().step([state.inner for state in marked], previews)
        return [
            InProgress(MarkedModel(outcome.state, state.poisonous)) if isinstance(outcome, InProgress) else outcome
            for state, outcome in zip(marked, outcomes, strict=True)
        ]


@dataclass(frozen=True)
class MarkedModel:
    inner: JobState
    poisonous: bool

    @property
    def done(self) -> int:
        return self.inner.done

    @property
    def total(self) -> int:
        return self.inner.total

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes


def classify_steps(model: nn.Module, _preprocess: object, device: torch.device) -> StepwiseModel | None:
    assert isinstance(model, Fragile)
    return FragileSteps(model.config, device) if model.config.steps else None


SYSTEM = System(
    architectures=(
        Architecture(
            name="fragile",
            model="tests.support.poison_worker:Fragile",
            bundle_defaults=BundleDefaults(lambda config: "classify"),
            forwards={"classify": "tests.support.poison_worker:classify"},
            steps={"classify": "tests.support.poison_worker:classify_steps"},
        ),
    ),
)

if __name__ == "__main__":
    registry.SYSTEMS = (*registry.SYSTEMS, "tests.support.poison_worker")
    raise SystemExit(run_worker(load()))
