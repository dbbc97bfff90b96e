"""Needs of a phase: parameters, memory and FLOPs, counted without its data and weights; and samples per second, from a few seconds of
steps that leave no trace, where there are data and memory for them."""

from __future__ import annotations

import os
import re
import resource
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from training import costs, phase_runner
from training.collectives import world_size
from training.costs import amount
from training.data.source import Sample, SampleSource, UnreadableSample
from training.errors import DataError
from training.loop import RunReport, train
from training.phase_runner import RunContext
from training.recipe import Phase, Recipe

_STEPS = 12
_MINUTES = 6 / 60
"""No step begins so long after the first one, which also waits for data workers to start."""
_CPU_BATCH = 16
"""Samples of a step in which the speed of a CPU is measured: larger batches are as fast, and take longer to measure."""


@dataclass(frozen=True)
class Estimate:
    text: str
    """A few lines for people."""
    flops: float | None
    """FLOPs of the whole phase; None if its length is not known."""
    seconds: float | None
    """Duration of the phase on this machine; None without a measurement."""


@dataclass(frozen=True)
class _Data:
    """Known facts of a phase's data."""

    source: SampleSource | None
    samples: int | None
    """Samples of an epoch; None if the paper does not say."""
    labels: int
    description: str


def estimate(recipe: Recipe, phase: Phase, context: RunContext) -> Estimate:
    """Estimate what a phase needs. Raises TrainingError."""
    data, loop = _data_of(recipe, phase, context), phase.loop
    cost = costs.count(recipe, phase, data.labels, _first(data.source))
    share = loop.batch_size // world_size()
    micro_batch = min(share, loop.micro_batch or share)
    step = cost.flops * loop.batch_size
    steps = _steps(phase, data.samples)
    flops = None if steps is None else step * steps
    fixed = [part / world_size() if loop.sharding == "fsdp" else part for part in (cost.weights, cost.gradients, cost.optimiser)]
    weights, gradients, optimiser = (amount(part, "B") for part in fixed)
    lines = [
        f"phase {phase.name}: {cost.objective} on {data.description}",
        f"  parameters   {cost.parameters / 1e6:.2f} M, {cost.trained / 1e6:.2f} M of them trained",
        f"  memory       {weights} weights, {gradients} gradients, {optimiser} optimiser in each process;",
        f"               {amount(cost.activations, 'B')} activations for each sample: "
        f"{amount(cost.activations * micro_batch, 'B')} for the {micro_batch:,} of a process",
        f"  FLOPs        {amount(step, 'FLOP')} in a step" + ("" if flops is None else f", {amount(flops, 'FLOP')} in all"),
        f"  length       {'unknown number of' if steps is None else f'{steps:,}'} steps of {loop.batch_size}",
    ]
    if data.source is None:
        return Estimate("\n".join((*lines, "  speed        not measured without the data")), flops, None)
    batch = loop.batch_size if context.device.type == "cuda" else min(loop.batch_size, _CPU_BATCH * world_size())
    needed, free = sum(fixed) + cost.activations * min(batch // world_size(), micro_batch), _free(context.device)
    if needed > free:
        lines.append(f"  speed        not measured: that takes {amount(needed, 'B')}, and {amount(free, 'B')} are free")
        return Estimate("\n".join(lines), flops, None)
    assert steps is not None
    report, activation_bytes = _measure(recipe, phase, context, batch, sum(fixed))
    seconds = steps * loop.batch_size / max(report.steady_rate, 1e-9)
    lines[-1] += f", about {_duration(seconds)} on this machine"
    speed = f"  speed        {report.steady_rate:.1f} {data.source.unit}/s, {report.waiting:.0%} of the time waiting for data"
    if activation_bytes > 0:  # else this process has taken as much before
        speed += f"; activations and data took {amount(activation_bytes, 'B')} in steps of {batch}"
    return Estimate("\n".join((*lines, speed)), flops, seconds)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def total(estimates: Sequence[Estimate]) -> str:
    """Summarise all phases in one line."""
    flops = [each.flops for each in estimates if each.flops is not None]
    counted = amount(sum(flops), "FLOP") + ("" if len(flops) == len(estimates) else " in the phases of known length")
    measured = [each.seconds for each in estimates if each.seconds is not None]
    if len(measured) < len(estimates):
        return f"in all {counted}"
    return f"in all about {_duration(sum(measured))} and {counted}; what is measured at the end comes on top"


def _data_of(recipe: Recipe, phase: Phase, context: RunContext) -> _Data:
    """Describe the data, or the published data if it cannot be opened. Raises DataError if the recipe has neither."""
    published = phase.published_data or recipe.published_data
    try:
        source = phase_runner.source_of(recipe, phase, context.cache)
    except DataError as error:
        if published is None:
            raise
        samples = "unknown" if published.samples is None else f"{published.samples:,} published"
        return _Data(None, published.samples, published.labels, f"{samples} samples ({error})")
    return _Data(source, len(source), len(source.labels), f"{len(source):,} {source.unit}")


def _first(source: SampleSource | None) -> Sample | None:
    try:
        return source.sample(0, 0) if source else None
    except UnreadableSample:
        return None


def _steps(phase: Phase, samples: int | None) -> int | None:
    loop = phase.loop
    epoch = loop.samples_per_epoch or samples
    return None if epoch is None else round(loop.epochs * (epoch // loop.batch_size))


def _measure(recipe: Recipe, phase: Phase, context: RunContext, batch: int, fixed: float) -> tuple[RunReport, float]:
    """Run a few steps, and return the bytes that they need in addition to `fixed`. Raises TrainingError."""
    with tempfile.TemporaryDirectory() as folder:
        earlier = {other.name for other in recipe.phases}
        # earlier phases may not have been trained yet
        parts = {name: source for name, source in phase.parts.items() if source not in earlier}
        start = None if (phase.start or "").removesuffix("@0") in earlier else phase.start
        phase = phase.model_copy(update={"start": start, "parts": parts})
        ready = phase_runner.prepare(recipe, phase, replace(context, tensorboard=False))
        short = {"batch_size": batch, "max_steps": _STEPS, "max_minutes": _MINUTES, "checkpoint_every": 10 * _STEPS, "log_every": 1}
        loop = phase.loop.model_copy(update=short)
        before = _peak(context.device)
        report = train(
            ready.objective, ready.source, replace(ready.plan, loop=loop), replace(ready.run, folder=Path(folder) / phase.name, saves=False)
        )
    return report, max(0.0, _peak(context.device) - before - fixed)


def _peak(device: torch.device) -> float:
    """Bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _free(device: torch.device) -> float:
    """Bytes of memory that this process may still take."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    linux = Path("/proc/meminfo")
    available = re.search(r"^MemAvailable: +(\d+) kB", linux.read_text(encoding="ascii"), re.MULTILINE) if linux.is_file() else None
    return 1024.0 * int(available[1]) if available else float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
