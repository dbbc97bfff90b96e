"""What a phase takes: parameters, memory and samples per second, from a few seconds of steps that leave no trace."""

from __future__ import annotations

import resource
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from training import phases
from training.loop import train
from training.phases import Workshop
from training.recipe import Phase, Recipe
from training.reductions import world

_STEPS = 12
_MINUTES = 6 / 60
"""No step begins so long after the first one, which also waits for data workers to start."""
_CPU_BATCH = 16
"""Samples of a step that tell the speed of a CPU: larger batches are as fast, and take longer to measure."""
_BYTES = 4


@dataclass(frozen=True)
class Estimate:
    text: str
    """A few lines for people."""
    seconds: float
    """That the phase takes on this machine."""


def estimate(recipe: Recipe, phase: Phase, shop: Workshop) -> Estimate:
    """Raises TrainingError."""
    with tempfile.TemporaryDirectory() as folder:
        earlier = {other.name for other in recipe.phases}
        if (phase.start or "").removesuffix("@0") in earlier:
            phase = phase.model_copy(update={"start": None})  # it may not have been trained yet
        ready = phases.prepare(recipe, phase, replace(shop, tensorboard=False))
        parameters = list(ready.objective.parameters())
        total, trained = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
        states = 2 if phase.optimiser.kind == "adamw" else 1
        fixed = _BYTES * (total + trained * (1 + states + bool(phase.loop.ema)))
        sharded = fixed / world() if phase.loop.sharding == "fsdp" else fixed
        batch = phase.loop.batch_size if shop.device.type == "cuda" else min(phase.loop.batch_size, _CPU_BATCH * world())
        short = {"batch_size": batch, "max_steps": _STEPS, "max_minutes": _MINUTES, "checkpoint_every": 10 * _STEPS, "log_every": 1}
        loop = phase.loop.model_copy(update=short)
        before = _peak(shop.device)
        report = train(
            ready.objective, ready.source, replace(ready.plan, loop=loop), replace(ready.run, folder=Path(folder) / phase.name, saves=False)
        )
    steps = round(phase.loop.epochs * ((phase.loop.samples_per_epoch or len(ready.source)) // phase.loop.batch_size))
    minutes = steps * phase.loop.batch_size / max(report.steady_rate, 1e-9) / 60
    length = f"{minutes / 60:.1f} hours" if minutes >= 60 else f"{minutes:.1f} minutes"
    text = "\n".join(
        (
            f"phase {phase.name}: {type(ready.objective).__name__} on {len(ready.source):,} {ready.source.unit}",
            f"  parameters   {total / 1e6:.2f} M, {trained / 1e6:.2f} M of them trained",
            f"  memory       {sharded / 2**20:.0f} MiB for weights, gradients and optimiser of each process; activations and data took",
            f"               {max(0.0, _peak(shop.device) - before - sharded) / 2**20:.0f} MiB more in steps of {batch}",
            f"  speed        {report.steady_rate:.1f} {ready.source.unit}/s, {report.waiting:.0%} of the time waiting for data",
            f"  length       {steps:,} steps of {phase.loop.batch_size}, about {length} on this machine",
        )
    )
    return Estimate(text, 60 * minutes)


def _peak(device: torch.device) -> float:
    """Bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
