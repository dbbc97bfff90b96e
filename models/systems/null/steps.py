"""A model that computes nothing: it takes a set time per batch and answers zeros, to measure everything around it.

With `steps` in its config a job takes several steps, and the answer depends on the input, on the job's seed and on every step. That tests
a scheduler: an answer shows if a step was lost, repeated or taken with another job's state.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.bundle import BundleSpec
from models.bundle_schema import Preprocess
from models.layers.forward import classification_arrays
from models.layers.stepwise import InProgress, JobState, StepCompletion, StepwiseModel, Tensors


@dataclass(frozen=True)
class NullConfig:
    milliseconds: float = 5.0
    """Per batch, or per step of a batch, whatever its size."""
    classes: int = 10
    tokens: int = 197
    """Reported as tokens in and out."""
    steps: tuple[int, ...] = ()
    """Numbers of steps that jobs take: the first pixel's first value chooses one (modulo their number). Empty: one forward pass."""
    width: int = 0
    """Width of the network that each step computes in addition to `milliseconds`; 0: none."""
    layers: int = 2

    def __post_init__(self) -> None:
        if any(steps < 1 for steps in self.steps):
            raise ValueError(f"steps: {list(self.steps)}; a job takes at least one")
        if self.width < 0 or self.layers < 0:
            raise ValueError(f"width {self.width}, layers {self.layers}: neither can be negative")


class Null(nn.Module):
    def __init__(self, config: NullConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, ...) → logits (B, classes)."""
        time.sleep(self.config.milliseconds / 1000)
        return torch.zeros(pixels.shape[0], self.config.classes)


def classify(model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
    assert isinstance(model, Null)
    return classification_arrays(model(arrays["pixels"]), model.config.tokens, model.config.tokens)


PRIME = 2**31 - 1
MULTIPLIER = 48271
"""Multiplier of Lehmer's generator modulo `PRIME`: every step moves on by one number."""
HIDDEN_SHARE = 0.01
"""Share of the network in the logits: far more than rounding, far less than a step of the generator."""


@dataclass(frozen=True)
class NullState:
    done: int
    total: int
    code: int
    """Lehmer's generator, started from the pixels and the seed."""
    hidden: Tensor
    """(width,)"""

    @property
    def nbytes(self) -> int:
        return self.hidden.nbytes


class NullSteps:
    """Steps of `Null`. Weights are drawn from a fixed seed, so a bundle holds none."""

    unit = "steps"

    def __init__(self, config: NullConfig, device: torch.device) -> None:
        self.config = config
        generator = torch.Generator().manual_seed(0)
        shapes = [(config.width, 4 * config.width), (4 * config.width, config.width)] * (config.layers if config.width else 0)
        self._weights = [(torch.randn(shape, generator=generator) / shape[0] ** 0.5).to(device) for shape in shapes]

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        return [self._start(job["pixels"], int(chosen.get("seed", 0))) for job, chosen in zip(arrays, options, strict=True)]

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | StepCompletion]:
        time.sleep(self.config.milliseconds / 1000)
        null_states = [state for state in states if isinstance(state, NullState)]
        hidden = self._network(torch.stack([state.hidden for state in null_states]))  # (B, width)
        next_states = [
            replace(state, done=state.done + 1, code=(state.code + state.done) * MULTIPLIER % PRIME, hidden=row.clone())
            for state, row in zip(null_states, hidden, strict=True)
        ]
        return [
            StepCompletion(self._answer(state))
            if state.done == state.total
            else InProgress(state, self._answer(state) if preview else None)
            for state, preview in zip(next_states, previews, strict=True)
        ]

    def cost(self, state: JobState) -> float:
        return 1.0

    def _start(self, pixels: Tensor, seed: int) -> NullState:
        """Start the generator from pixels, uint8 (H, W, 3), and a seed."""
        flat = pixels.flatten().long()
        code = int((flat * (1 + torch.arange(len(flat), device=flat.device) % 251)).sum()) + seed
        total = self.config.steps[int(flat[0]) % len(self.config.steps)]
        hidden = torch.linspace(-1, 1, self.config.width, device=pixels.device) * (1 + code % 7)
        return NullState(0, total, 1 + code % (PRIME - 1), hidden)

    def _network(self, hidden: Tensor) -> Tensor:
        """Apply residual blocks, (B, width) → (B, width). They contract, so rounding errors do not grow from step to step."""
        for widen, narrow in zip(self._weights[::2], self._weights[1::2], strict=True):
            hidden = 0.5 * hidden + 0.5 * torch.tanh(torch.relu(hidden @ widen) @ narrow)
        return hidden

    def _answer(self, state: NullState) -> dict[str, Tensor]:
        """Return logits float32 (classes,): octal digits of the generator, repeated after ten classes; and tokens int32 (2,)."""
        digits = torch.tensor([state.code >> 3 * (index % 10) & 7 for index in range(self.config.classes)], dtype=torch.float32)
        logits = digits + (HIDDEN_SHARE * state.hidden.mean().cpu() if self.config.width else 0.0)
        return {"logits": logits, "tokens": torch.tensor([self.config.tokens] * 2, dtype=torch.int32)}


def classify_steps(model: nn.Module, _spec: BundleSpec, device: torch.device) -> StepwiseModel | None:
    assert isinstance(model, Null)
    return NullSteps(model.config, device) if model.config.steps else None
