"""A bundle's forward pass by several backends: each batch is run by the one that was measured fastest for its merge schedule and size."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from kernels import numba_loader as loops
from kernels.ops import compiled_loops
from models.bundle import GRAPH_FILE, Bundle, BundleSpec
from models.loading import LoadedModel, load
from models.merge_schedule import MergeSchedule
from models.registry import architectures
from server.telemetry import logs
from server.worker.backend_times import Backend, BackendTimes, Choice, Schedule
from server.worker.device_layout import Layout
from server.worker.executors import Arrays, check

log = logs.get(__name__)

BackendSetting = Literal["auto", "eager", "fused", "onnx", "int8"]


def usual_schedule(spec: BundleSpec) -> MergeSchedule:
    rung = spec.rung(spec.default_rung) if spec.default_rung else None
    return rung.merge if rung else MergeSchedule.off()


class Runner(Protocol):
    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays: ...


@dataclass(frozen=True)
class Fused:
    """The model in PyTorch with merging in compiled loops."""

    model: LoadedModel
    loops: ModuleType

    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        with compiled_loops(self.loops):
            return self.model.forward(arrays, options)


class ModelMemory:
    """The weights of a worker's bundles within a bound in bytes: those of the bundle that was used longest ago leave first, and come back
    when a batch needs them. Those that run stay whatever the bound says, and a bundle that is larger than it runs alone."""

    def __init__(self, bound: int = sys.maxsize) -> None:
        self._bound = bound
        self._used: WeakKeyDictionary[Backends, int] = WeakKeyDictionary()
        """When each holder was used last, as a number that counts batches."""
        self._users: WeakKeyDictionary[Backends, int] = WeakKeyDictionary()
        """How many batches use it now."""
        self._batches = 0
        self._lock = threading.Lock()

    @contextmanager
    def using(self, holder: Backends) -> Iterator[None]:
        """Inside the `with` block the holder's weights are in memory. Loading them makes other batches wait."""
        with self._lock:
            if not holder.nbytes:
                holder.restore()
                log.info("weights back in memory", bundle=holder.spec.id, bytes=holder.nbytes)
            self._batches += 1
            self._used[holder] = self._batches
            self._users[holder] = self._users.get(holder, 0) + 1
            self._release_oldest()
        try:
            yield
        finally:
            with self._lock:
                self._users[holder] -= 1

    def _release_oldest(self) -> None:
        used = sum(holder.nbytes for holder in self._used)
        for holder in sorted(self._used, key=self._used.__getitem__):
            if used <= self._bound:
                return
            if not self._users.get(holder) and holder.nbytes:
                used -= holder.nbytes
                holder.release()
                log.info("weights left memory", bundle=holder.spec.id)


class Backends:
    """`model` in PyTorch, and what else can run it. Any number of threads may call `forward` at once.

    graphs: folder of ONNX graphs that are made; sample: arrays of two usual jobs.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: LoadedModel,
        layout: Layout,
        setting: BackendSetting,
        graphs: Path | None,
        sample: Arrays,
        times: BackendTimes | None = None,
        memory: ModelMemory | None = None,
    ) -> None:
        self.model = model
        self.setting = setting
        self.times = times or BackendTimes()
        self._bundle = bundle
        self._layout = layout
        self._graphs = graphs
        self._sample = sample
        self._memory = memory or ModelMemory()
        self._runners: dict[Backend, Runner] = {"eager": model}
        self._left_out: frozenset[Backend] = frozenset()
        """Backends that cannot be opened here."""
        self._dtype = next((parameter.dtype for parameter in model.model.parameters()), torch.float32)
        self._elements = sum(parameter.numel() for parameter in model.without_weights().model.parameters())
        """Number of weights; 0: they lie in a graph, as long as its file."""
        self._rungs = {"off": self.schedule(MergeSchedule.off())} | {rung.name: self.schedule(rung.merge) for rung in bundle.spec.ladder}
        """Several may have the same schedule."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in memory, in the format of each copy: each backend has one but those that run PyTorch's."""
        sizes: Mapping[Backend, int] = {"eager": self._dtype.itemsize, "onnx": 4, "int8": 1}
        return sum(self._elements * sizes[backend] or self.spec.size for backend in self._runners.keys() - {"fused"})

    def release(self) -> None:
        """Let go of all weights; times and choices stay."""
        self._runners = {}
        self.model = self.model.without_weights()

    def restore(self) -> None:
        """Load the weights again. Raises BundleError."""
        self.model = load(self._bundle, device=self._layout.device, dtype=self._dtype, packed=True)
        self._runners = {"eager": self.model}
        self._open_all(self.times.chosen(lambda _: self.candidates) if self.setting == "auto" else None)

    @property
    def spec(self) -> BundleSpec:
        return self.model.spec

    @property
    def is_graph(self) -> bool:
        """Whether the bundle's weights are an ONNX graph, which ONNX Runtime runs whatever the setting says."""
        return self.spec.weights_file == GRAPH_FILE

    @cached_property
    def precise(self) -> bool:
        """Whether all answers are computed alike, in float32."""
        return self.spec.task in architectures()[self.spec.architecture].precise_tasks

    @cached_property  # each batch asks for it, and to look for an installed package takes a tenth of a millisecond
    def candidates(self) -> Sequence[Backend]:
        """Backends that the setting allows on this device, eager first."""
        if self.is_graph or self.precise:
            return ("eager",)
        if self.setting == "eager" or self._layout.device.type != "cpu":
            return ("eager",)
        fused: Sequence[Backend] = ("fused",) if self.spec.ladder and loops.is_installed() else ()
        if self.setting == "fused":
            return ("eager", *fused)
        wanted: Mapping[BackendSetting, Sequence[Backend]] = {"auto": ("onnx", "int8"), "onnx": ("onnx",), "int8": ("int8",)}
        graphs = [name for name in wanted[self.setting] if self._has_graph and (name != "int8" or self.spec.int8 is not None)]
        return ("eager", *(fused if self.setting == "auto" else ()), *graphs)

    def open(self, only: set[Backend] | None = None) -> None:
        """Open the candidates, or those of them that are named. One that cannot be opened is left out, with a line in the log."""
        with self._memory.using(self):
            self._open_all(only)

    def _open_all(self, only: set[Backend] | None) -> None:
        for backend in self.candidates:
            if backend in self._runners or (only is not None and backend not in only):
                continue
            try:
                runner = self._open(backend)
            except Exception as error:
                log.warning("backend left out", bundle=self.spec.id, backend=backend, reason=str(error))
                self._left_out = self._left_out | {backend}
                continue
            self.add(backend, runner)
        if self.setting not in ("auto", *self.candidates) and not self.is_graph:
            log.warning("backend left out", bundle=self.spec.id, backend=self.setting, reason=self._not_a_candidate())

    def _not_a_candidate(self) -> str:
        """Why what the setting names is no candidate."""
        if self.precise:
            return f"task {self.spec.task} is computed by PyTorch alone, in float32"
        if self._layout.device.type != "cpu":
            return f"it runs on CPUs, not on {self._layout.device.type}"
        if self.setting == "fused":
            return "the extra `fast` is not installed" if self.spec.ladder else "the bundle has no ladder"
        if not self._has_graph:
            return f"architecture {self.spec.architecture} has no ONNX graph for task {self.spec.task}"
        return "`opsin calibrate` has not measured its accuracy"

    @property
    def _has_graph(self) -> bool:
        """Whether ONNX Runtime can run the bundle's weights: those of a network that takes pixels and answers with logits."""
        return architectures()[self.spec.architecture].graph is not None and self.spec.task == "classify"

    def difference(self, backend: Backend) -> float | None:
        """Largest difference between the answers of an ONNX graph and of PyTorch in float32, as it was opened; None: it is not open."""
        difference: float | None = getattr(self._runners.get(backend), "difference", None)
        return difference

    def add(self, backend: Backend, runner: Runner) -> None:
        """From now on it may run batches."""
        self._runners = {**self._runners, backend: runner}

    def close_idle(self) -> None:
        """Let go of backends that run nothing, with their copies of the weights."""
        used = self.times.chosen(self.usable) | {"eager"}
        if self.setting == "auto":
            self._runners = {backend: runner for backend, runner in self._runners.items() if backend in used}

    def usable(self, schedule: Schedule) -> Sequence[Backend]:
        """The open backends that may run a schedule: int8 only on rungs whose accuracy allows it, fused loops only where tokens merge."""
        return [backend for backend in self._allowed(schedule) if backend in self._runners]

    def knows(self, schedule: Schedule, size: int) -> bool:
        """Whether all that may run a schedule has been measured."""
        return all(self.times.seconds(schedule, backend, size) is not None for backend in self._allowed(schedule))

    def _allowed(self, schedule: Schedule) -> Sequence[Backend]:
        may: Mapping[Backend, bool] = {"int8": self._allows_int8(schedule), "fused": any(schedule)}
        return [backend for backend in self.candidates if may.get(backend, True) and backend not in self._left_out]

    def _allows_int8(self, schedule: Schedule) -> bool:
        """By every rung of this schedule whose accuracy was measured."""
        if (int8 := self.spec.int8) is None:
            return False
        measured = [name for name, own in self._rungs.items() if own == schedule and name in int8.rungs]
        return bool(measured) and all(map(int8.allows, measured))

    def schedule(self, merge: MergeSchedule | Sequence[int]) -> Schedule:
        """Tokens that really merge in each block; as it is asked for where the model does not say how many tokens it has."""
        schedule = merge if isinstance(merge, MergeSchedule) else MergeSchedule.from_list(merge)
        config: Any = getattr(self.model.model, "config", None)
        tokens = getattr(config, "patches", None)
        if not isinstance(tokens, int):
            return tuple(max(r, 0) for r in schedule.expand(self.model.depth))
        tokens += self.model.protected_tokens
        counts = (tokens, *schedule.token_counts(tokens, self.model.depth, self.model.protected_tokens))
        return tuple(before - after for before, after in pairwise(counts))

    def choose(self, size: int, options: Mapping[str, Any]) -> Choice:
        """The backend that runs a batch of `size` jobs, and the merging that it does."""
        return self._choose(size, self.schedule(options.get("merge", ())), trace=bool(options.get("trace")))

    def _choose(self, size: int, schedule: Schedule, *, trace: bool) -> Choice:
        if trace or self.precise:
            return Choice("eager", schedule)  # only PyTorch tells which tokens merged, and vectors do not depend on what is faster
        if self.setting != "auto":
            ready = self.setting in self.usable(schedule)
            return Choice(self.setting if ready else "eager", schedule)
        return self.times.choose(schedule, size, self.usable, skippable=schedule in self._rungs.values())

    def by_rung(self, size: int) -> dict[str, str]:
        """The backend that runs a batch of `size`, by rung and `off`."""
        if len(self.candidates) == 1:
            return {}
        return {name: self.choose(size, {"merge": schedule}).backend for name, schedule in self._rungs.items()}

    def usual(self, size: int) -> Backend:
        """The backend that runs a batch of `size` by default."""
        return self.choose(size, {"merge": usual_schedule(self.spec)}).backend

    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        """Run one batch. Where it ran without the merging that was asked for, `schedule` int32 (B, depth) says what was done."""
        size = len(next(iter(arrays.values())))
        with self._memory.using(self):
            schedule = self.schedule(options.get("merge", ()))
            choice = self._choose(size, schedule, trace=bool(options.get("trace")))
            if choice.schedule == schedule:
                return self._run(choice.backend, arrays, options)
            answer = self._run(choice.backend, arrays, {**options, "merge": choice.schedule})
        return {**answer, "schedule": np.tile(np.array(choice.schedule, np.int32), (size, 1))}

    def run(self, backend: Backend, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        """By one backend; where that fails by eager, and if it succeeds the backend is not used again."""
        with self._memory.using(self):
            return self._run(backend, arrays, options)

    def _run(self, backend: Backend, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        runner = self._runners.get(backend, self.model)
        if runner is self.model:
            return self.model.forward(arrays, options)
        size = len(next(iter(arrays.values())))
        try:
            answer = runner.forward(arrays, options)
            check(answer, size, self.spec)
            return answer
        except Exception as error:
            answer = self.model.forward(arrays, options)
            check(answer, size, self.spec)  # this or the line before raises where the input is to blame
            log.error("backend failed: eager runs instead", bundle=self.spec.id, backend=backend, reason=repr(error))
            self._runners = {name: runner for name, runner in self._runners.items() if name != backend}
            return answer

    def _open(self, backend: Backend) -> Runner:
        if backend == "fused":
            return Fused(
                self.model, loops.load_compiled_loops(self._dtype, self._graphs.parent / "loops" if self._graphs is not None else None)
            )
        return self._open_graph("int8" if backend == "int8" else "float32")

    def _open_graph(self, precision: Literal["float32", "int8"]) -> Runner:
        from models.systems.onnx.classifier_backend import open_classifier  # ONNX Runtime takes a third of a second to import

        exact = self.model if self._dtype is torch.float32 else None
        threads = self._layout.threads if self._layout.threads == 1 else self._layout.slots * self._layout.threads  # all slots share them
        return open_classifier(self._bundle, self._graphs, precision, threads, self._sample, exact)
