"""The one training loop. An objective is a module whose `forward(pixels, targets)` is the loss; everything else is data."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from training.data.augmented import DistortedFlags, EpochBatches, seed_for
from training.optim import ParameterGroup, warmup_cosine
from training.recipe import Phase

CHECKPOINT = "checkpoint.pt"


class TrainingError(Exception):
    """Training cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Run:
    """Where a run keeps its checkpoint, and what is the same for all phases of a recipe."""

    folder: Path
    seed: int
    precision: str = "no"
    checkpoint_every: int = 100
    workers: int = 0
    """Processes that prepare batches."""


def train(objective: nn.Module, data: DistortedFlags, groups: Sequence[ParameterGroup], plan: Phase, run: Run) -> None:
    """Train `objective` in place, going on from the run's checkpoint if there is one; a finished run is only loaded.

    A killed run that is started again ends with the same weights as one that was never killed: every random draw is a function of its
    place in the run, and a checkpoint (weights, optimiser, step) replaces the one before it atomically. Raises TrainingError.
    """
    accelerator = Accelerator(mixed_precision=run.precision)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # on CPUs too: else attention goes by way of float32
    batches = EpochBatches(len(data), plan.batch_size, run.seed)
    optimizer = torch.optim.AdamW([dict(group) for group in groups], lr=plan.lr, betas=plan.betas, fused=True)
    batched = DataLoader(data, batch_sampler=batches, collate_fn=_as_it_is, num_workers=run.workers, persistent_workers=run.workers > 0)
    objective, optimizer, loader = accelerator.prepare(objective, optimizer, batched)
    checkpoint = _Checkpoint(run, f"{plan.model_dump_json()} {run.seed} {run.precision} {len(data)}")
    step = checkpoint.load(accelerator.unwrap_model(objective), optimizer)
    per_epoch = len(batches)
    objective.train()
    while step < plan.epochs * per_epoch:
        batches.epoch, batches.first = divmod(step, per_epoch)
        began, losses = time.monotonic(), []
        for pixels, targets in loader:
            _set_lr(optimizer, plan, step / per_epoch)
            set_seed(seed_for(run.seed, step), device_specific=True)
            with sdpa_kernel(SDPBackend.MATH):  # of few tokens: the fused backward pass is slower on a CPU
                loss: Tensor = objective(pixels, targets)
            accelerator.backward(loss)
            if plan.clip_norm is not None:
                accelerator.clip_grad_norm_(objective.parameters(), plan.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            step += 1
            if step % run.checkpoint_every == 0 and accelerator.is_main_process:
                checkpoint.save(accelerator.unwrap_model(objective), optimizer, step)
        mean_loss = float(torch.stack(losses).mean())
        if not math.isfinite(mean_loss):
            raise TrainingError(
                f"{run.folder}: the loss is {mean_loss} in epoch {batches.epoch + 1}: lower the learning rate, then start anew"
            )
        rate = len(losses) * batches.batch_size / (time.monotonic() - began)
        accelerator.print(
            f"{run.folder.name} epoch {batches.epoch + 1}/{plan.epochs}  loss {mean_loss:.4f}  {rate:.0f} pictures/s", flush=True
        )
    if accelerator.is_main_process:
        checkpoint.save(accelerator.unwrap_model(objective), optimizer, step)
    objective.eval()


def _as_it_is(batch: Any) -> Any:
    return batch


def _set_lr(optimizer: torch.optim.Optimizer, plan: Phase, epoch: float) -> None:
    rate = warmup_cosine(epoch, lr=plan.lr, min_lr=plan.min_lr, warmup_epochs=plan.warmup, epochs=plan.epochs)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


class _Checkpoint:
    def __init__(self, run: Run, plan: str) -> None:
        self._path = run.folder / CHECKPOINT
        self._plan = hashlib.sha256(plan.encode()).hexdigest()

    def save(self, objective: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        with partial.open("wb") as file:
            state = {"plan": self._plan, "step": step, "objective": objective.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)

    def load(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """The step to go on from, 0 without a checkpoint."""
        if not self._path.is_file():
            return 0
        state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        if state["plan"] != self._plan:
            raise TrainingError(f"{self._path} belongs to a run with other settings: delete it, or choose another folder")
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
