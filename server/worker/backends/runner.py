"""A bundle's forward pass by several backends. A `Learner` chooses one for each batch, and learns from its time.

The weights of all bundles of a worker stay within a limit of memory."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from kernels import numba_loader
from models.bundle import GRAPH_FILE, Bundle, BundleSpec
from models.loading import LoadedModel, load
from models.merge_schedule import MergeSchedule
from models.registry import architectures
from server.telemetry import logs
from server.worker.backends.learner import Arm, BackendSetting, Format, LearnedRung, Learner, Schedule, Turn, backend_of, format_of
from server.worker.backends.verification import DTYPES, ArmRunner, NotWrittenError, default_schedule, max_difference, open_arm, sample
from server.worker.device_layout import Layout
from server.worker.executors import Arrays, BatchRun, SeenShapes, check_outputs

log = logs.get(__name__)


class ModelMemory:
    """A limit for the weights of all bundles. Those that were used longest ago leave first, and return when a batch needs them.

    Weights that are in use stay regardless of the limit, as do those of jobs of several steps. A bundle that exceeds the limit runs alone.
    """

    def __init__(self, max_bytes: int = sys.maxsize) -> None:
        self._max_bytes = max_bytes
        self._last_used: WeakKeyDictionary[Backends, int] = WeakKeyDictionary()
        """Number of the batch that used each holder last."""
        self._users: WeakKeyDictionary[Backends, int] = WeakKeyDictionary()
        """Number of batches that use each holder now."""
        self._released: WeakKeyDictionary[Backends, int] = WeakKeyDictionary()
        """Size in bytes of the weights that have left memory."""
        self._pinned: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._batches = 0
        self._lock = threading.Lock()

    def pin(self, owner: object, nbytes: int) -> None:
        """Count weights that stay in memory as long as their owner exists."""
        with self._lock:
            self._pinned[owner] = nbytes
            self._evict(0)

    @contextmanager
    def using(self, holder: Backends) -> Iterator[None]:
        """Keep the holder's weights in memory inside the `with` block. Other batches wait while they are loaded. Raises BundleError."""
        with self._lock:
            self._batches += 1
            self._last_used[holder] = self._batches
            self._users[holder] = self._users.get(holder, 0) + 1
            try:
                self._evict(self._released.get(holder, 0))
                if not holder.nbytes:
                    holder.restore()
                    self._released.pop(holder, None)
                    log.info("weights back in memory", bundle=holder.spec.id, bytes=holder.nbytes)
                    self._evict(0)
            except BaseException:
                self._users[holder] -= 1
                raise
        try:
            yield
        finally:
            with self._lock:
                self._users[holder] -= 1

    def _evict(self, nbytes: int) -> None:
        if self._max_bytes == sys.maxsize:
            return
        used = nbytes + sum(self._pinned.values()) + sum(holder.nbytes for holder in self._last_used)
        for holder in sorted(self._last_used, key=self._last_used.__getitem__):
            if used <= self._max_bytes:
                return
            if not self._users.get(holder) and holder.nbytes:
                self._released[holder] = holder.nbytes
                used -= holder.nbytes
                holder.release()
                log.info("weights left memory", bundle=holder.spec.id)


log = logs.get(__name__)

MIN_BATCH_S = 1e-9
"""Time of a batch that is too short to be measured, in seconds."""


def is_precise(spec: BundleSpec) -> bool:
    """Return whether all answers of a bundle's task are computed by PyTorch in float32. Unknown architectures are refused by `load`."""
    architecture = architectures().get(spec.architecture)
    return architecture is not None and spec.task in architecture.precise_tasks


class Backends:
    """A bundle of one forward pass in PyTorch (`model`), and what else can run it. Any number of threads may run batches at once.

    dtype: the setting. cache: folder of graphs and compiled loops. stored: what was learned of the bundle before.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: LoadedModel,
        layout: Layout,
        setting: BackendSetting,
        dtype: str = "float32",
        cache: Path | None = None,
        stored: Mapping[str, LearnedRung] | None = None,
        memory: ModelMemory | None = None,
    ) -> None:
        self.bundle = bundle
        self.model = model
        self.layout = layout
        self.setting = setting
        self.cache = cache
        self.memory = memory or ModelMemory()
        self.differences: dict[Arm, float] = {"eager": 0.0, "fused": 0.0} if self.loaded_format == "float32" else {}
        """Maximum difference of each verified arm's answers from PyTorch's in float32."""
        self._dtype_setting = dtype
        self._runners: dict[Arm, ArmRunner] = {"eager": model}
        self._left_out: frozenset[Arm] = frozenset()
        self._shapes = SeenShapes()
        self._elements = sum(parameter.numel() for parameter in model.without_weights().model.parameters())
        """Number of weights; 0 for a graph, whose size is that of its file."""
        self.rungs = {"off": self.schedule(MergeSchedule.off())} | {rung.name: self.schedule(rung.merge) for rung in bundle.spec.ladder}
        """Schedule by rung; several may have the same."""
        self.learner = Learner({schedule: self._allowed_arms(schedule) for schedule in self.rungs.values()}, self.loaded_format)
        self.learner.restore(stored or {})
        self._lock = threading.Lock()
        if setting not in ("auto", *self.candidates) and not self.is_graph:
            log.warning("backend left out", bundle=self.spec.id, backend=setting, reason=self._missing_reason())

    @property
    def spec(self) -> BundleSpec:
        return self.model.spec

    @cached_property
    def loaded_format(self) -> Format:
        """Number format of PyTorch's weights."""
        parameter = next(self.model.model.parameters(), None)
        return next((name for name, dtype in DTYPES.items() if parameter is not None and parameter.dtype is dtype), "float32")

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in memory, in the format of each copy; `fused` runs those of `eager`."""
        sizes: Mapping[Arm, int] = {"eager": DTYPES[self.loaded_format].itemsize, "bfloat16": 2, "float16": 2, "onnx": 4, "int8": 1}
        return sum(self._elements * sizes[arm] or self.spec.size for arm in self._runners.keys() - {"fused"})

    def release(self) -> None:
        """Let go of all weights; what was learned stays."""
        self._runners = {}
        self.model = self.model.without_weights()

    def restore(self) -> None:
        """Load the weights again. Raises BundleError."""
        self.model = load(self.bundle, device=self.layout.device, dtype=DTYPES[self.loaded_format], packed=True)
        self._runners = {"eager": self.model}
        self.open_settled()

    def open_settled(self) -> None:
        """Open the arms that answer for rungs whose kind is settled, so that an answer does not depend on when it is given."""
        settled = self.learner.settled if self.learns else {self.setting}
        for arm in [arm for arm in self.unopened if arm in settled and arm != "fused"]:
            self.open(arm)

    def open(self, arm: Arm, cache: Path | None = None) -> None:
        """Open an arm, unless its graph has not been written. It is left out if it cannot be opened or differs from PyTorch."""
        try:
            opened = open_arm(self.bundle, self.model, self.layout, cache or self.cache, arm, may_be_slow=not self.learns)
        except NotWrittenError:
            return
        except Exception as error:
            self.leave_out(arm, str(error))
            return
        self.add(arm, opened.runner, opened.difference)
        log.info("backend opened", bundle=self.spec.id, backend=arm, max_difference=opened.difference)

    @property
    def is_graph(self) -> bool:
        """Whether the bundle's weights are an ONNX graph, which ONNX Runtime runs regardless of the setting."""
        return self.spec.weights_file == GRAPH_FILE

    @property
    def learns(self) -> bool:
        """Whether the arm of a batch is learned; otherwise the setting names it."""
        return self.setting in ("auto", "eager")

    @cached_property
    def candidates(self) -> Sequence[Arm]:
        """The arms that the settings allow on this device, `eager` first, then in the order in which they are opened."""
        if self.is_graph or is_precise(self.spec):
            return ("eager",)
        arms: list[Arm] = ["eager"]
        on_cpu = self.layout.device.type == "cpu"
        if on_cpu and self.setting in ("auto", "int8") and self._has_graph and self.spec.int8 is not None:
            arms.append("int8")
        if self.learns and self._dtype_setting == "auto" and self._elements:
            arms.append(self.layout.half)
        if on_cpu and self.setting in ("auto", "onnx") and self._has_graph:
            arms.append("onnx")
        if on_cpu and self.setting in ("auto", "fused") and self.spec.ladder and self.cache is not None and numba_loader.is_installed():
            arms.append("fused")
        return arms

    def _missing_reason(self) -> str:
        """Return why the backend that is set is not a candidate."""
        if is_precise(self.spec):
            return f"task {self.spec.task} is computed by PyTorch alone, in float32"
        if self.layout.device.type != "cpu":
            return f"it runs on CPUs, not on {self.layout.device.type}"
        if self.setting == "fused" and self.spec.ladder:
            return "there is no cache folder for it" if numba_loader.is_installed() else "the extra `fast` is not installed"
        if self.setting == "fused":
            return "the bundle has no ladder"
        if not self._has_graph:
            return f"architecture {self.spec.architecture} has no ONNX graph for task {self.spec.task}"
        return "`opsin calibrate` has not measured its accuracy"

    @property
    def _has_graph(self) -> bool:
        """Whether ONNX Runtime can run the bundle's weights: those of a network that takes pixels and answers with logits."""
        return architectures()[self.spec.architecture].graph is not None and self.spec.task == "classify"

    @property
    def unopened(self) -> list[Arm]:
        """The arms that run something, or may come to do so, and are not open."""
        needed = self.learner.needed if self.learns else self.candidates
        return [arm for arm in self.candidates if arm in needed and arm not in self._runners and arm not in self._left_out]

    def add(self, arm: Arm, runner: ArmRunner, difference: float | None = None) -> None:
        """Let an arm run batches from now on."""
        self._runners = {**self._runners, arm: runner}
        if difference is not None:
            self.differences[arm] = difference

    def leave_out(self, arm: Arm, reason: str) -> None:
        """Do without an arm from now on, with one line in the log."""
        log.warning("backend left out", bundle=self.spec.id, backend=arm, reason=reason)
        self._left_out = self._left_out | {arm}
        self._runners = {name: runner for name, runner in self._runners.items() if name != arm}
        with self._lock:
            self.learner.drop(arm)

    def close_idle(self) -> None:
        """Let go of the arms that run nothing any more, with their copies of the weights."""
        if self.learns and (idle := self._runners.keys() - self.learner.needed):
            self._runners = {arm: runner for arm, runner in self._runners.items() if arm not in idle}

    def _allowed_arms(self, schedule: Schedule) -> list[Arm]:
        """Return the arms that may run a schedule: int8 only for rungs whose accuracy allows it, fused loops only if tokens merge."""
        may: Mapping[Arm, bool] = {"int8": self._allows_int8(schedule), "fused": any(schedule)}
        return [arm for arm in self.candidates if may.get(arm, True)]

    def _allows_int8(self, schedule: Schedule) -> bool:
        """Return whether every rung of this schedule whose accuracy was measured allows int8, and there is one."""
        if (int8 := self.spec.int8) is None:
            return False
        measured = [name for name, other in self.rungs.items() if other == schedule and name in int8.rungs]
        return bool(measured) and all(map(int8.allows, measured))

    def schedule(self, merge: MergeSchedule | Sequence[int]) -> Schedule:
        """Return the number of tokens that merge in each block; what `merge` says if the model does not know its number of tokens."""
        schedule = merge if isinstance(merge, MergeSchedule) else MergeSchedule.from_list(merge)
        tokens = getattr(getattr(self.model.model, "config", None), "patches", None)
        if not isinstance(tokens, int):
            return tuple(max(r, 0) for r in schedule.expand(self.model.depth))
        tokens += self.model.protected_tokens
        counts = (tokens, *schedule.token_counts(tokens, self.model.depth, self.model.protected_tokens))
        return tuple(before - after for before, after in pairwise(counts))

    def choose(self, schedule: Schedule, size: int, options: Mapping[str, Any]) -> Turn:
        """Choose the arm of a batch of `size` jobs among those that are open."""
        if options.get("trace") or options.get("deterministic"):
            return Turn("eager")
        if not self.learns:
            return Turn(self.leader(schedule, size))
        with self._lock:
            return self.learner.choose(schedule, size, self._open_arms(schedule))

    def leader(self, schedule: Schedule, size: int) -> Arm:
        """Return the arm that runs batches of `size`, other than trials."""
        if not self.learns:
            return next((arm for arm in self._open_arms(schedule) if arm == self.setting), "eager")
        with self._lock:
            return self.learner.leader(schedule, size)

    def backends_by_rung(self, size: int) -> dict[str, str]:
        """Return the backend that runs a batch of `size`, by rung and `off`; empty if there is no choice."""
        if not self.has_choice:
            return {}
        return {name: backend_of(self.leader(schedule, size)) for name, schedule in self.rungs.items()}

    @property
    def has_choice(self) -> bool:
        return len(set(map(backend_of, self.candidates))) > 1

    def default_arm(self, size: int) -> Arm:
        """Return the arm that runs a batch of `size` by default."""
        return self.leader(self.schedule(default_schedule(self.spec)), size)

    def number_format(self, size: int) -> tuple[str, float | None]:
        """Return the number format of default batches of `size`, and the maximum difference of its answers from float32's, if known."""
        arm = self.default_arm(size)
        return format_of(arm, self.loaded_format), self.differences.get(arm)

    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        return self.run_batch(arrays, options).outputs

    def run_batch(self, arrays: Arrays, options: Mapping[str, Any]) -> BatchRun:
        """Run one batch by the arm whose turn it is. If that fails and `eager` does not, the arm is left out from then on."""
        size = len(next(iter(arrays.values())))
        with self.memory.using(self):
            if len(self.candidates) == 1:
                return BatchRun(self.model.forward(arrays, options))
            schedule = self.schedule(options.get("merge", ()))
            turn = self.choose(schedule, size, options)
            if not self.learns:
                return BatchRun(self._run(turn.arm, arrays, options))
            is_cold = self._shapes.is_new(size, {"schedule": schedule, "arm": turn.arm})
            started = self.layout.clock()
            outputs = self._run(turn.arm, arrays, options)
            seconds = max(MIN_BATCH_S, self.layout.clock() - started)
            with self._lock:
                has_new_leader = self.learner.observe(schedule, turn, size, seconds, is_cold=is_cold)
        return BatchRun(outputs, is_cold or turn.is_trial, has_new_leader)

    def observe_arms(self, arrays: Arrays, options: Mapping[str, Any], rounds: int) -> None:
        """Let the open arms take turns on a batch, and learn from all rounds but the first."""
        schedule, size = self.schedule(options["merge"]), len(next(iter(arrays.values())))
        for turn in range(1 + rounds):
            for arm in self.open_arms(options):
                started = time.monotonic()
                self._run(arm, arrays, options)
                seconds = max(MIN_BATCH_S, time.monotonic() - started)
                with self._lock:
                    self.learner.observe(schedule, Turn(arm), size, seconds, is_cold=turn == 0)

    def measure_difference(self) -> None:
        """Compare answers with those of float32, if the setting names another format. Raises BundleError."""
        if "eager" in self.differences:
            return
        exact = load(self.bundle, device=self.layout.device, packed=True)
        job, options = sample(self.spec, 1), {"merge": default_schedule(self.spec).expand(self.model.depth)}
        self.differences["eager"] = max_difference(exact.forward(job, options), self.run_arm("eager", job, options))

    def snapshot(self) -> dict[str, LearnedRung]:
        """Return what was learned, to be stored."""
        with self._lock:
            return self.learner.snapshot() if self.learns else {}

    def run_arm(self, arm: Arm, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        """Run one batch by an arm, or by `eager` if that is not open or fails."""
        with self.memory.using(self):
            return self._run(arm, arrays, options)

    def open_arms(self, options: Mapping[str, Any]) -> Collection[Arm]:
        """Return the open arms that may run a batch with these options."""
        return self._open_arms(self.schedule(options.get("merge", ())))

    def _open_arms(self, schedule: Schedule) -> list[Arm]:
        return [arm for arm in self._allowed_arms(schedule) if arm in self._runners]

    def _run(self, arm: Arm, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        runner = self._runners.get(arm, self.model)
        if runner is self.model:
            return self.model.forward(arrays, options)
        size = len(next(iter(arrays.values())))
        try:
            answer = runner.forward(arrays, options)
            check_outputs(answer, size, self.spec)
            return answer
        except Exception as error:
            answer = self.model.forward(arrays, options)
            check_outputs(answer, size, self.spec)  # this or the line before raises if the input is to blame
            self.leave_out(arm, f"it failed, and eager ran instead: {error!r}")
            return answer
