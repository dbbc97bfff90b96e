"""The training loop: it trains an objective (`training.objectives.protocols`) on a source (`training.data.source`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from training.checkpoint import Checkpoints, MovingAverage
from training.collectives import rank, world_size
from training.data.sampler import BatchShare, EpochBatches, SampleDataset, seed_for
from training.data.source import SampleSource
from training.distributed import TYPES, any_rank, gather_full, recompute_blocks, without_sync, wrap_distributed
from training.errors import DataError, TrainingError
from training.fingerprint import Fingerprint
from training.objectives.protocols import Batch, ChoosesSamples, HasAfterStep, parameter_groups
from training.optim import optimiser_of, scheduled_lr
from training.recipe_settings import LoopSettings, OptimiserSettings, ScheduleSettings
from training.run_logger import RunLogger
from training.stop_requests import StopRequests, ignore_stop_signals


class RunOutcome(Enum):
    DONE = "done"
    STOPPED = "stopped"
    """Stopped by a budget or a signal, with a checkpoint: the same command continues."""


@dataclass(frozen=True)
class TrainingPlan:
    optimiser: OptimiserSettings
    schedule: ScheduleSettings
    loop: LoopSettings
    seed: int


@dataclass(frozen=True)
class RunSetup:
    """Folder, device and identity of a run."""

    folder: Path
    device: torch.device
    fingerprint: Fingerprint
    tensorboard: bool = False
    saves: bool = True
    """False to measure a few steps."""


@dataclass(frozen=True)
class RunReport:
    ended: RunOutcome
    step: int
    rate: float
    """Samples per second of all processes, since this process began."""
    waiting: float
    """Share of the time in which the loop waited for data."""
    steady_rate: float
    """Samples per second of all processes without the first step, which includes one-time costs."""
    signal: int | None = None
    """Signal that asked this process to stop."""


def train(objective: nn.Module, source: SampleSource, plan: TrainingPlan, run: RunSetup) -> RunReport:
    """Train `objective` in place, going on from the run's checkpoint if there is one; a finished run is only loaded.

    A killed run that is started again ends with the same weights as one that was never killed: every random draw is a function of its
    position in the run, and a checkpoint holds all else. Raises TrainingError.
    """
    objective.to(run.device).train()
    trainer = _Trainer(objective, source, plan, run)
    trainer.checkpoints.claim_folder()
    trainer.resume()
    report = trainer.run()
    if report.ended is RunOutcome.DONE and trainer.average:
        trainer.average.apply()
    objective.eval()
    return report


def share_of(loop: LoopSettings) -> BatchShare:
    """Return this process's part of every step. Raises TrainingError."""
    if loop.batch_size % world_size():
        raise TrainingError(f"loop.batch_size: {loop.batch_size} samples cannot be split evenly over {world_size()} processes")
    return BatchShare(loop.batch_size, rank(), world_size(), loop.micro_batch)


class _Trainer:
    """State of a phase in training."""

    def __init__(self, objective: nn.Module, source: SampleSource, plan: TrainingPlan, run: RunSetup) -> None:
        loop = plan.loop
        if loop.precision == "fp16" and run.device.type != "cuda":
            raise TrainingError("loop.precision: fp16 needs a GPU; use bf16 or fp32")
        if len(source) < loop.batch_size:
            raise TrainingError(f"loop.batch_size: {loop.batch_size} is more than the data has ({len(source)} {source.unit})")
        self.objective, self.plan, self.device, self.source, self.saves = objective, plan, run.device, source, run.saves
        self.peak = plan.optimiser.peak(loop.batch_size)
        self.step = 0
        self.epoch, self.within = 0, 0
        """The next step's place in the data."""
        self.share = share_of(loop)
        self.batches = EpochBatches(source, self.share, plan.seed)
        self.schedule_steps = (loop.samples_per_epoch or len(source)) // loop.batch_size
        """Steps of one epoch of the schedule."""
        self.steps = round(loop.epochs * self.schedule_steps)
        if self.steps < 1:
            raise TrainingError(f"loop.epochs: {loop.epochs:g} of {self.schedule_steps} steps are none; give more")
        if loop.checkpoint_activations:
            recompute_blocks(objective)
        self.wrapped = wrap_distributed(objective, loop.sharding, loop.precision, run.device)
        self.optimiser = optimiser_of(parameter_groups(objective, plan.optimiser), plan.optimiser, self.peak)
        self.average = MovingAverage(objective, loop.ema) if loop.ema else None
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=loop.precision == "fp16")
        self.checkpoints = Checkpoints(run.folder, run.fingerprint)
        self.logger = RunLogger(run.folder, self.steps, source.unit, tensorboard=run.tensorboard)
        if loop.compile:
            self.wrapped.compile()

    def resume(self) -> None:
        latest = self.checkpoints.latest()
        if latest is not None:
            extra = self._extra()
            self.checkpoints.load(self.objective, self.optimiser, extra, latest)
            self.step, self.epoch, self.within = (int(extra[name]) for name in ("step", "epoch", "within"))
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(extra["scaler"])
        self.logger.resume(self.step)

    def run(self) -> RunReport:
        loop, started_at, first, waited = self.plan.loop, time.monotonic(), self.step, 0.0
        saved, settled = self.step, 0.0
        loader = DataLoader(
            SampleDataset(self.source, self.plan.seed),
            batch_sampler=self.batches,
            collate_fn=_identity,
            num_workers=loop.workers,
            worker_init_fn=ignore_stop_signals,
            persistent_workers=loop.workers > 0,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
        )
        unreadable: list[str] = []
        with StopRequests(loop.max_steps, loop.max_minutes) as stopping, self.logger:
            stop = False
            while self.step < self.steps and not stop:
                self._start_epoch()
                unreadable.clear()
                micro = iter(loader)
                for _ in range(min(self.batches.steps - self.batches.first, self.steps - self.step)):
                    waited += self._step(micro, unreadable)
                    if not settled:
                        settled = time.monotonic()
                        if not self.saves:  # what is measured are the steps after the first
                            stopping.count_from_now()
                    self._check(unreadable)
                    if self.step % loop.log_every == 0 or world_size() == 1:
                        stop = any_rank(stopping.should_stop(self.step), self.device)
                    if self.step % loop.log_every == 0 or stop:
                        self.logger.flush(self.step)
                    if self.step % loop.checkpoint_every == 0 or stop:
                        self._save()
                        saved = self.step
                    if stop:
                        break
            ended_at = time.monotonic()
            if saved != self.step:
                self._save()
        seconds = max(time.monotonic() - started_at, 1e-9)
        ended = RunOutcome.DONE if self.step >= self.steps else RunOutcome.STOPPED
        rate = (self.step - first) * loop.batch_size / seconds
        steady = (self.step - first - 1) * loop.batch_size / max(ended_at - settled, 1e-9) if self.step > first + 1 else rate
        return RunReport(ended, self.step, rate, waited / seconds, steady, stopping.signal)

    def _start_epoch(self) -> None:
        """Or go on in the middle of one. Raises DataError."""
        self.batches.epoch, self.batches.first = self.epoch, self.within
        if isinstance(self.objective, ChoosesSamples) and self.objective.epoch_steps:
            captions = getattr(self.source, "captions", None)
            if captions is None:
                raise DataError(f"data.kind: the objective chooses among captions, and {self.source.unit} have none")
            self.batches.chosen = self.objective.subset(captions, self.epoch, self.plan.loop.batch_size)

    def _step(self, micro: Iterator[tuple[dict[str, Tensor], list[str]]], unreadable: list[str]) -> float:
        """Run one optimiser step, and return the seconds that it waited for data."""
        waited, results = 0.0, []
        lr = scheduled_lr(self.plan.schedule, self.step / self.schedule_steps, lr=self.peak, epochs=self.plan.loop.epochs)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["lr_scale"]
        for number in range(self.share.micro_batches):
            started_at = time.monotonic()
            batch, problems = next(micro)
            waited += time.monotonic() - started_at
            unreadable += problems
            torch.manual_seed(seed_for(self.plan.seed, self.step, number, rank()))
            results.append(self._backward(batch, number))
        norm = self._update()
        self.step += 1
        self.within += 1
        if self.within == self.batches.steps:
            self.epoch, self.within = self.epoch + 1, 0
        if self.average:
            self.average.update()
        if isinstance(self.objective, HasAfterStep):
            self.objective.after_step(self.step, self.steps)
        mean = {name: torch.stack([result[name].float() for result in results]).mean() for name in results[0]}
        self.logger.add(self.step, lr, mean | {"grad_norm": norm}, self.plan.loop.batch_size)
        if self.step % self.plan.loop.checkpoint_every == 0 and self.plan.loop.sharding != "fsdp":  # pictures need whole weights
            self.logger.show(self.step, self.objective, batch)
        return waited

    def _backward(self, batch: Batch, number: int) -> dict[str, Tensor]:
        moved = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        weight = len(batch["draw"]) / self.share.per_rank  # micro-batches of a step may differ by one sample
        # attention is chosen for the backward pass too, which may compute blocks again
        with without_sync(self.wrapped, number == self.share.micro_batches - 1), attention_of(self.device):
            with self._precision():
                result: dict[str, Tensor] = self.wrapped(moved)
            with flush_denormals():
                self.scaler.scale(result["loss"] * weight).backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() * (weight * self.share.micro_batches) for name, value in result.items()}

    def _update(self) -> Tensor:
        """Step the optimiser → the norm of the gradient before it was clipped."""
        self.scaler.unscale_(self.optimiser)
        limit = self.plan.loop.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), float("inf") if limit is None else limit)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        # the scaler skips steps whose gradient overflowed, so that such a norm need not end the run
        return torch.nan_to_num(gather_full(norm)) if self.scaler.is_enabled() else gather_full(norm)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.plan.loop.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, TYPES[self.plan.loop.precision])

    def _check(self, unreadable: list[str]) -> None:
        """Raise DataError if too much of the data could not be read."""
        self.logger.warn(unreadable)
        if len(unreadable) > self.plan.loop.max_unreadable * len(self.source) / world_size():
            examples = "; ".join(unreadable[:5])
            raise DataError(
                f"{len(unreadable)} of {len(self.source)} {self.source.unit} could not be read, and loop.max_unreadable allows "
                f"{self.plan.loop.max_unreadable:.1%}: {examples}"
            )

    def _extra(self) -> dict[str, Any]:
        extra: dict[str, Any] = {"step": self.step, "epoch": self.epoch, "within": self.within}
        if self.average:
            extra["average"] = self.average.average
        if self.scaler.is_enabled():
            extra["scaler"] = self.scaler.state_dict()
        return extra

    def _save(self) -> None:
        self.logger.flush(self.step)  # raises for a loss that is not finite, before it is saved
        if self.saves:
            self.checkpoints.save(self.objective, self.optimiser, self._extra(), self.step)


def _identity(batch: Any) -> Any:
    return batch


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Set numbers below 1e-38 to zero in this thread, and permanently in threads that torch starts inside.

    Gradients of sharp attention have many of them, which slow a CPU down a hundredfold. Other libraries may need them: a k-d tree of SciPy
    recurses without end.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def attention_of(device: torch.device) -> AbstractContextManager[Any]:
    """On a CPU attention runs unfused: of few tokens, the fused backward pass is slower there."""
    if device.type != "cpu":
        return nullcontext()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # concerns CPUs too: else attention goes by way of float32
    return sdpa_kernel(SDPBackend.MATH)
