"""Views of a run for people: a progress bar, `log.jsonl` with every step's loss, and TensorBoard."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from training.collectives import all_reduce_mean
from training.distributed import is_main
from training.errors import TrainingError
from training.objectives.protocols import Batch, HasPictures

LOG = "log.jsonl"
_WARNINGS = 20
_LINE_INTERVAL_S = 30.0
"""Time between lines of a log that is not a terminal."""


@dataclass(frozen=True)
class _PendingStep:
    step: int
    lr: float
    values: Mapping[str, Tensor]
    samples: int


class RunLogger:
    """Steps are added without waiting for the device; `flush` gathers them over processes, checks and writes them."""

    def __init__(self, folder: Path, steps: int, unit: str, *, tensorboard: bool) -> None:
        self._folder = folder
        self._steps = steps
        self._unit = unit
        self._pending: list[_PendingStep] = []
        self._warned = 0
        self._since = time.monotonic()
        self._printed = time.monotonic()
        self._writer: Any = _writer(folder) if tensorboard and is_main() else None
        console = Console(file=sys.stderr, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
        )
        self._terminal = console.is_terminal and is_main()
        self._bar = Progress(*columns, console=console, disable=not self._terminal)
        self._task: TaskID = self._bar.add_task(folder.name, total=steps, said="")

    def __enter__(self) -> Self:
        self._since = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        if self._writer:
            self._writer.close()

    def resume(self, step: int) -> None:
        """Forget what was logged after `step`: it happens again. Says at once from where the run goes on."""
        if step and is_main():
            state = "is done" if step >= self._steps else "goes on"
            print(f"{self._folder.name} {state}: step {step}/{self._steps}, from {self._folder}", file=sys.stderr, flush=True)
        log = self._folder / LOG
        if is_main() and log.is_file():
            lines = [line for line in log.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self._bar.update(self._task, completed=step)

    def add(self, step: int, lr: float, values: Mapping[str, Tensor], samples: int) -> None:
        self._pending.append(_PendingStep(step, lr, values, samples))

    def flush(self, step: int) -> None:
        """Write pending steps. Raises TrainingError if a loss or a gradient is not finite."""
        if not self._pending:
            return
        names = list(self._pending[0].values)
        table = all_reduce_mean(
            torch.stack([torch.stack([pending.values[name].float() for name in names]) for pending in self._pending])
        ).tolist()
        rows = [
            {"step": pending.step, "lr": pending.lr, **dict(zip(names, row, strict=True))}
            for pending, row in zip(self._pending, table, strict=True)
        ]
        for row in rows:
            if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
                found = f"the loss is {row['loss']} and the norm of the gradient {row['grad_norm']}"
                raise TrainingError(
                    f"{self._folder}: {found} in step {row['step']} at a learning rate of {row['lr']:.2g}. Not saved: lower optimiser.lr "
                    "or set loop.clip_norm; a run of the same settings goes on from its last checkpoint"
                )
        now = time.monotonic()
        rate = sum(pending.samples for pending in self._pending) / max(now - self._since, 1e-9)
        self._since, self._pending = now, []
        if is_main():
            self._write(rows, rate)
            self._print_progress(step, rows[-1], rate, now)

    def _write(self, rows: Sequence[Mapping[str, Any]], rate: float) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / LOG).open("a", encoding="utf-8") as log:
            log.writelines(json.dumps(row) + "\n" for row in rows)
        if self._writer:
            for row in rows:
                for name in row.keys() - {"step"}:
                    self._writer.add_scalar(name, row[name], row["step"])
            self._writer.add_scalar(f"{self._unit} per second", rate, rows[-1]["step"])

    def _print_progress(self, step: int, row: Mapping[str, Any], rate: float, now: float) -> None:
        status = f"loss {row['loss']:.4f}  {rate:.0f} {self._unit}/s"
        self._bar.update(self._task, completed=step, said=status)
        if not self._terminal and (now - self._printed >= _LINE_INTERVAL_S or step >= self._steps):
            self._printed = now
            print(f"{self._folder.name} step {step}/{self._steps}  {status}", file=sys.stderr, flush=True)

    def warn(self, problems: Sequence[str]) -> None:
        """Name unreadable samples, the first few of them."""
        for problem in problems[self._warned : _WARNINGS]:
            self._bar.console.print(f"unreadable, left out: {problem}", style="yellow")
        self._warned = len(problems)

    def show(self, step: int, objective: nn.Module, batch: Batch) -> None:
        """Images that the objective has to show."""
        if self._writer and isinstance(objective, HasPictures):
            device = next(objective.parameters()).device
            few = {name: value[:8].to(device) for name, value in batch.items()}
            for name, images in objective.pictures(few).items():
                self._writer.add_images(name, images, step, dataformats="NHWC")


def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))


def _step_of(line: str) -> float:
    """Infinity for a line that a kill cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the steps of a phase, in order."""
    log = folder / LOG
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
