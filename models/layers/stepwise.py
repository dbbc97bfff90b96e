"""The contract of models whose jobs take several steps: denoising steps, levels of a reconstruction, windows of a clip.

The caller keeps the states, decides which of them take their next step together, and may throw them away at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.bundle import BundleSpec

Tensors = Mapping[str, Tensor]


class JobState(Protocol):
    """How far one job has come. A value: a step makes a new one and writes into nothing that the old one refers to."""

    @property
    def done(self) -> int:
        """Number of steps taken."""

    @property
    def total(self) -> int:
        """Number of steps in all, as far as it is known; it may change from step to step."""

    @property
    def nbytes(self) -> int:
        """Memory on the device that this job keeps between its steps, in bytes."""


class JobTooLarge(Exception):
    """A job asks for more than one may, as its steps have shown: its client's fault. `option` names what would have to be less."""

    def __init__(self, option: str, detail: str) -> None:
        super().__init__(f"{option}: {detail}")
        self.option = option
        self.detail = detail


@dataclass(frozen=True)
class InProgress:
    """More steps follow."""

    state: JobState
    preview: Tensors | None = None
    """Outputs that can be shown already, without a batch dimension; None where none were asked for or there is nothing to show."""


@dataclass(frozen=True)
class Completed:
    """The last step was taken."""

    outputs: Tensors
    """The answer of one job, without a batch dimension."""


class InvalidInput(Exception):
    """A job's input turned out to be unusable while its steps were taken; the message is for whoever sent it."""


class StepwiseModel(Protocol):
    """A model that answers step by step.

    A step that raises has changed nothing, since states are values: the caller may take it again with fewer jobs. The answer of a job
    must not depend on which others take their steps with it.
    """

    @property
    def unit(self) -> str:
        """Name of the steps, for messages: `steps`, `levels`, `windows`."""

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        """Compute once what no step changes (an encoder, keys and values). Arrays and options of each job, on the model's device.

        Shapes are equal within a bucket, unless the task makes buckets of several shapes."""

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | Completed]:
        """Take the next step of each state, in this order. They may be at different places and of different totals. A job that has to wait,
        as for frames that are still being read, keeps the very state that it has, and no step is counted.

        previews: for which of them something to show is wanted."""

    def cost(self, state: JobState) -> float:
        """Cost of the next step in items (tokens, points, …); 1 where all cost the same."""


StepwiseFactory = Callable[[nn.Module, BundleSpec, torch.device], StepwiseModel | None]
"""(model, its bundle's spec, its device) → how it answers; None where its config asks for one forward pass."""


def synchronize(device: torch.device) -> None:
    """Return when all that this thread has asked of a GPU is computed: before others read it, on streams of their own."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
