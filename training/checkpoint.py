"""Checkpoints of a phase, by `torch.distributed.checkpoint`: every process writes its part, and any number of processes reads them.

A checkpoint is a folder `step-N`. It is written under a temporary name, synchronised and renamed before the previous one is deleted, so
that a kill or a full disk leaves the previous one.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from training.collectives import world_size
from training.distributed import barrier, is_main
from training.errors import TrainingError, disk_is_full
from training.fingerprint import Fingerprint, require_same

_RUN = "run.json"
_PARTIAL = ".partial"
_PRIVATE = "private"


class Checkpoints:
    def __init__(self, folder: Path, fingerprint: Fingerprint) -> None:
        self.folder = folder
        self._fingerprint = fingerprint

    def claim_folder(self) -> None:
        """Write the fingerprint of the run. Raises TrainingError if the folder belongs to another run."""
        remembered = self.folder / _RUN
        if remembered.is_file():
            try:
                before = json.loads(remembered.read_text(encoding="utf-8"))
                if not isinstance(before, dict):
                    raise ValueError("it holds no fields")
            except ValueError as error:
                raise TrainingError(f"{remembered}: damaged ({error}). Delete its folder, or choose another --runs") from error
            require_same(self.folder, before, self._fingerprint)
        elif is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(remembered, json.dumps(self._fingerprint, indent=2, sort_keys=True))
        barrier()

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint."""
        steps = [int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*") if not path.suffix]
        return max(steps, default=None)

    def save(self, objective: nn.Module, optimiser: Any, extra: Mapping[str, Any], step: int) -> None:
        """Write a checkpoint and delete older ones. Raises TrainingError and keeps the last one if the disk is full."""
        target = self.folder / f"step-{step}"
        partial = target.with_suffix(_PARTIAL)
        model, optimisation = get_state_dict(objective, optimiser)
        state = {"model": model, "optimiser": optimisation, _PRIVATE: _pack(_private(model)), **extra}
        try:
            if is_main():
                shutil.rmtree(partial, ignore_errors=True)
            barrier()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about the single process
                save(state, checkpoint_id=partial, no_dist=world_size() == 1)
            barrier()
            if is_main():
                if target.exists():
                    shutil.rmtree(target)
                partial.rename(target)
                _sync(self.folder)
        except (OSError, CheckpointException) as error:
            if disk_is_full(error):
                shutil.rmtree(partial, ignore_errors=True)
                raise TrainingError(
                    f"{self.folder}: disk full, step {step} could not be saved. The checkpoint of step {self.latest() or 0} is kept: "
                    "make room and start the same command again"
                ) from error
            raise
        if is_main():
            for old in self.folder.glob("step-*"):
                if old != target:
                    shutil.rmtree(old)
        barrier()

    def load(self, objective: nn.Module, optimiser: Any, extra: dict[str, Any], step: int) -> None:
        """Load in place, `extra` included. Raises TrainingError for a damaged checkpoint."""
        model, optimisation = get_state_dict(objective, optimiser)
        private = _private(model)
        state: dict[str, Any] = {"model": model, "optimiser": optimisation, _PRIVATE: b"", **extra}
        checkpoint = self.folder / f"step-{step}"
        try:
            FileSystemReader(checkpoint).read_metadata()  # `load` would log a traceback
        except Exception as error:  # pickle may raise anything
            raise _unreadable(checkpoint, error) from error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                load(state, checkpoint_id=checkpoint, no_dist=world_size() == 1)
        except (CheckpointException, EOFError, OSError, UnpicklingError) as error:
            [reason, *_] = [failure for failure, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
            raise _unreadable(checkpoint, reason) from error
        if private:
            state["model"] |= torch.load(io.BytesIO(state[_PRIVATE]), weights_only=True)
        set_state_dict(
            objective,
            optimiser,
            model_state_dict=state["model"],
            optim_state_dict=state["optimiser"],
            options=StateDictOptions(strict=True),
        )
        extra.update({name: state[name] for name in extra})


def _unreadable(checkpoint: Path, reason: BaseException) -> TrainingError:
    message = " ".join(str(reason).split()) or type(reason).__name__
    return TrainingError(f"{checkpoint}: cannot be read ({message}). If it is damaged, delete it, and the run starts again")


def _private(model: dict[str, Any]) -> dict[str, Any]:
    """Remove and return extra states of modules (`get_extra_state`): unlike parameters and buffers, their shapes may change."""
    return {name: model.pop(name) for name in list(model) if name.endswith("_extra_state")}


def _pack(state: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(dict(state), file)
    return file.getvalue()


def write_atomically(path: Path, text: str) -> None:
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path of this process in the same folder, then rename it to `path`. After an exception it is deleted."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}{_PARTIAL}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class MovingAverage:
    """Exponential moving average of the weights (and the buffers as they are), kept in the layout of the weights."""

    def __init__(self, objective: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = {name: value for name, value in objective.named_parameters() if value.requires_grad}
        self.average: dict[str, Tensor] = {name: value.detach().clone() for name, value in self._parameters.items()}

    def update(self) -> None:
        for name, value in self._parameters.items():
            self.average[name].lerp_(value.detach(), 1 - self._decay)

    def apply(self) -> None:
        """Replace the weights by their average."""
        for name, value in self._parameters.items():
            value.data.copy_(self.average[name])
