"""A worker's thread that opens the arms of its bundles one after the other, and stores what was learned. No request waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from kernels.malloc import return_freed_memory
from models.bundle import Bundle, BundleError
from models.processes.process_io import child_environment
from server.processes.os_process import die_with_parent
from server.scheduler.batcher import StepTimes
from server.telemetry import logs
from server.worker.backends.learned_cache import Conditions, LearnedBundle, LearnedCache
from server.worker.backends.learner import Arm
from server.worker.backends.runner import Backends
from server.worker.backends.verification import sample

log = logs.get(__name__)

NICENESS = 5
MAX_CHILD_S = 600.0
"""Maximum time of a child in seconds, with its wait for the children of other workers."""
GPU_SIZES = (1, 8, 64)
"""Batch sizes at which a GPU's formats are compared; kernels are prepared for each of them."""
GPU_ROUNDS = 3

RunInSlot = Callable[[Callable[[], None]], None]
"""How work for a GPU is run: in the thread of a slot, until it has ended."""


class Candidates:
    """The bundles whose arms are opened, and whose learning is stored. Methods may be called by any thread, `look` by one."""

    def __init__(self, cache: LearnedCache, run_in_slot: RunInSlot = lambda work: work()) -> None:
        self._cache = cache
        self._run_in_slot = run_in_slot
        self._bundles: dict[str, _Candidate] = {}
        self._lock = threading.Lock()

    def add(self, bundle: Bundle, conditions: Conditions, learned: LearnedBundle, backends: Backends | None) -> None:
        """Open the arms of a bundle that has been loaded, from the next `look` on."""
        with self._lock:
            self._bundles[bundle.spec.id] = _Candidate(conditions, learned, backends)

    def look(self, step_times: Mapping[str, StepTimes]) -> None:
        """Open one arm if one is missing, and store what is new. step_times: those of each loaded bundle, by id."""
        with self._lock:
            self._bundles = {id_: candidate for id_, candidate in self._bundles.items() if id_ in step_times}
            bundles = dict(self._bundles)
        for id_, candidate in bundles.items():
            if (learned := candidate.news(step_times[id_])) is not None:
                self._cache.store(candidate.conditions, learned)
            if candidate.backends is not None:
                candidate.backends.close_idle()
        for candidate in bundles.values():
            if candidate.backends is not None and (arms := candidate.backends.unopened):
                _open(candidate.backends, arms[0], self._run_in_slot)
                return
            if candidate.backends is not None:
                candidate.backends.measure_difference()


class _Candidate:
    """A loaded bundle, and what is stored of it."""

    def __init__(self, conditions: Conditions, learned: LearnedBundle, backends: Backends | None) -> None:
        self.conditions = conditions
        self.backends = backends
        self._learned = learned
        self._version: Any = (self._learner_version, set(learned.seconds))

    @property
    def _learner_version(self) -> int:
        return self.backends.learner.version if self.backends is not None else 0

    def news(self, steps: StepTimes) -> LearnedBundle | None:
        """Return what is to be stored, if there is anything new: a leader, or a batch size whose time is known."""
        version = self._learner_version, set(steps.seconds)
        if version == self._version or not steps.seconds:
            return None
        self._version = version
        rungs = self.backends.snapshot() if self.backends is not None else {}
        self._learned = msgspec.structs.replace(self._learned, largest=steps.largest, seconds=dict(steps.seconds), rungs=rungs)
        return self._learned


def lower_thread_priority() -> None:
    """Let the calling thread, and the children that it starts, give way to the slots."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def open_all(backends: Backends) -> None:
    """Open all arms of a bundle now."""
    while arms := backends.unopened:
        _open(backends, arms[0], lambda work: work())


def _open(backends: Backends, arm: Arm, run_in_slot: RunInSlot) -> None:
    try:
        with _writable(backends.cache) as cache:
            for is_written in (False, True):
                with backends.memory.using(backends):
                    run_in_slot(lambda: backends.open(arm, cache))
                if arm not in backends.unopened:
                    break
                if is_written:
                    raise ChildError("it was damaged as soon as it was written")
                _make(arm, backends, cache)
        if backends.layout.device.type == "cuda":
            with backends.memory.using(backends):
                _compare_formats(backends, run_in_slot)
    except (ChildError, OSError, BundleError) as error:
        backends.leave_out(arm, str(error))
    finally:
        return_freed_memory()


class ChildError(Exception):
    """Error of a child that has not written what an arm needs."""


@contextmanager
def _writable(cache: Path | None) -> Iterator[Path]:
    """Provide the cache folder, or a temporary one if there is none that can be written."""
    if cache is not None:
        with suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK | os.X_OK) and cache.is_dir():
            yield cache
            return
    with TemporaryDirectory(prefix="opsin-graphs-") as folder:
        yield Path(folder)


def _make(arm: Arm, backends: Backends, cache: Path) -> None:
    """Let a child write a graph or compile loops. Raises ChildError."""
    program = [sys.executable, "-P", "-m", "opsin.engine", "server.worker.backends.make"]
    program += [arm, backends.loaded_format, str(backends.bundle.path), str(cache)]
    extensions = {name: value for name, value in os.environ.items() if name == "OPSIN_EXTENSIONS"}
    environment = {name: value for name, value in child_environment().items() if name != "OPSIN_EXTENSIONS"} | extensions
    try:
        child = subprocess.run(
            die_with_parent(program), capture_output=True, timeout=MAX_CHILD_S, stdin=subprocess.DEVNULL, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise ChildError(f"its graph was not written within {MAX_CHILD_S:g} seconds") from None
    if child.returncode:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        ending = f"was ended by signal {-child.returncode}" if child.returncode < 0 else lines[-1] if lines else "failed"
        raise ChildError(f"the program that writes its graph {ending}" if child.returncode < 0 else f"its graph was not written: {ending}")


def _compare_formats(backends: Backends, run_in_slot: RunInSlot) -> None:
    """Run each rung on a GPU in each format. Large batches decide on the kind: small ones take as long as their launches."""
    for schedule in dict.fromkeys(backends.rungs.values()):
        for size in GPU_SIZES:
            if size <= backends.layout.largest_batch:
                arrays = sample(backends.spec, size)
                run_in_slot(lambda arrays=arrays, schedule=schedule: backends.observe_arms(arrays, {"merge": list(schedule)}, GPU_ROUNDS))  # type: ignore[misc]
