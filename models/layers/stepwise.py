"""Protocol of models whose jobs take several steps: denoising steps, levels of a reconstruction, windows of a clip.

The caller keeps the states, decides which of them take their next step together, and may discard them at any time.
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
    """State of a job between its steps. A value: a step makes a new one and does not change what the old one refers to."""

    @property
    def done(self) -> int:
        """Number of steps taken."""

    @property
    def total(self) -> int:
        """Total number of steps; an estimate that may change from step to step."""

    @property
    def nbytes(self) -> int:
        """Memory on the device that this job keeps between its steps, in bytes."""


class JobTooLarge(Exception):
    """Error of a job whose steps need more than the limit: the client's fault. `option` names what would have to be less."""

    def __init__(self, option: str, detail: str) -> None:
        super().__init__(f"{option}: {detail}")
        self.option = option
        self.detail = detail


@dataclass(frozen=True)
class InProgress:
    """Outcome of a step that is not the last."""

    state: JobState
    preview: Tensors | None = None
    """Outputs that can be shown already, without a batch dimension; None if none were requested or there are none yet."""


@dataclass(frozen=True)
class StepCompletion:
    outputs: Tensors
    """Outputs of one job, without a batch dimension."""


class InvalidInput(Exception):
    """Error of a job whose input turned out to be unusable during its steps; the message is for the client."""


@dataclass(frozen=True)
class LoadedMember:
    """A member of a pipeline, as the pipeline's network gets it."""

    spec: BundleSpec
    model: nn.Module
    """Loaded, on the pipeline's device, in evaluation mode."""


class StepwiseModel(Protocol):
    """A model that answers in steps.

    A step that raises has changed nothing, since states are values: the caller may repeat it with fewer jobs. The outputs of a job must not
    depend on the others that take their steps with it.
    """

    @property
    def unit(self) -> str:
        """Name of the steps, for messages: `steps`, `levels`, `windows`."""

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        """Compute once what no step changes (an encoder, keys and values). Arrays and options of each job, on the model's device.

        Shapes are equal within a bucket, unless the task makes buckets of several shapes.
        """

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | StepCompletion]:
        """Take the next step of each state, in this order. Their progress and totals may differ.

        A job that has to wait, as for frames that are still being read, keeps the very same state, and no step is counted. previews: which
        of them should return a preview.
        """

    def cost(self, state: JobState) -> float:
        """Return the cost of the next step in items (tokens, points, …); 1 if all cost the same."""


StepwiseFactory = Callable[[nn.Module, BundleSpec, torch.device], StepwiseModel | None]
"""(model, its bundle's spec, its device) → its stepwise model; None if its config has a single forward pass."""


def keep_for_current_stream(tensor: Tensor) -> None:
    """Keep the memory of a tensor that another stream made until the current one has read it, even if the tensor is dropped before."""
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has computed all that this thread has queued, before other threads read it on streams of their own."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
