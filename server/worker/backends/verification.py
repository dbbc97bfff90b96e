"""Opening an arm of a bundle, and comparing it with PyTorch before it answers anyone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch

from kernels import numba_loader
from kernels.numba_loader import load_compiled_loops
from kernels.ops import compiled_loops
from models.bundle import Bundle, BundleError, BundleSpec
from models.loading import LoadedModel, load
from models.merge_schedule import MergeSchedule
from server.tasks.registry import main_task
from server.worker.backends.learned_cache import read_cpu
from server.worker.backends.learner import Arm, Format
from server.worker.device_layout import Layout
from server.worker.executors import Arrays, check_outputs

DTYPES: Mapping[Format, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = 1e-4
"""Maximum difference of logits that are computed in float32, relative to max(1, |logit|)."""
MAX_RATIO = 1.5
"""Maximum time of an arm, relative to PyTorch's."""
ROUNDS = 3
GRAPHS, LOOPS = "graphs", "loops"
"""Folders of the cache."""


class ArmError(Exception):
    """Error of an arm that cannot be opened, differs from PyTorch or is much slower."""


class NotWrittenError(ArmError):
    """Error of an arm whose graph has not been written yet."""


class ArmRunner(Protocol):
    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays: ...


class OpenedArm(NamedTuple):
    runner: ArmRunner
    difference: float
    """Maximum difference of its answers from PyTorch's."""


@dataclass(frozen=True)
class FusedRunner:
    """The model in PyTorch with merging in compiled loops."""

    model: LoadedModel
    loops: ModuleType

    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        with compiled_loops(self.loops):
            return self.model.forward(arrays, options)


def default_schedule(spec: BundleSpec) -> MergeSchedule:
    """Return the schedule of requests that name none."""
    rung = spec.rung(spec.default_rung) if spec.default_rung else None
    return rung.merge if rung else MergeSchedule.off()


def sample(spec: BundleSpec, size: int) -> Arrays:
    """Return the arrays of a batch of typical jobs. Raises BundleError."""
    task = main_task(spec)
    if task is None:
        raise BundleError(f"{spec.id}: task {spec.task} is not served yet by this version")
    return {name: np.stack([array] * size) for name, array in task.samples(spec)[0].items()}


def open_arm(bundle: Bundle, model: LoadedModel, layout: Layout, cache: Path | None, arm: Arm, *, may_be_slow: bool) -> OpenedArm:
    """Open an arm whose graph or compiled code has been written, and compare it with `model`, the bundle in PyTorch.

    Raises ArmError, or what loading raises."""
    two_jobs, loaded = sample(bundle.spec, 2), next(model.model.parameters()).dtype
    if cache is None and arm not in DTYPES:
        raise NotWrittenError("there is no cache folder")
    if arm == "fused":
        assert cache is not None
        if not loops_seal(cache, loaded).exists():
            raise NotWrittenError("its loops have not been compiled")
        runner: ArmRunner = FusedRunner(model, load_compiled_loops(loaded, cache / LOOPS))
    elif arm == "bfloat16" or arm == "float16":
        runner = load(bundle, device=layout.device, dtype=DTYPES[arm], packed=True)
    else:
        from models.systems.onnx import classifier_backend  # ONNX Runtime takes a third of a second to import

        assert cache is not None
        precision: Literal["float32", "int8"] = "int8" if arm == "int8" else "float32"
        content = classifier_backend.find_graph(bundle, cache / GRAPHS, precision)
        if content is None:
            raise NotWrittenError("its graph has not been written")
        threads = layout.threads if layout.threads == 1 else layout.slots * layout.threads  # all slots share them
        exact = model if loaded is torch.float32 else None
        runner = classifier_backend.open_classifier(bundle, None, precision, threads, two_jobs, exact, content)
        _compare_times(model, runner, layout, two_jobs, may_be_slow=may_be_slow)
        return OpenedArm(runner, runner.difference)
    difference = 0.0
    for options in _options(bundle.spec, model.depth):
        expected, answer = model.forward(two_jobs, options), runner.forward(two_jobs, options)
        check_outputs(answer, 2, bundle.spec)
        difference = max(difference, max_difference(expected, answer))
        if arm == "fused" and loaded is torch.float32 and not difference <= TOLERANCE * max(1.0, float(np.abs(expected["logits"]).max())):
            raise ArmError(f"its logits differ by {difference:.1e} from PyTorch's, more than {TOLERANCE:.0e}")
    _compare_times(model, runner, layout, two_jobs, may_be_slow=may_be_slow)
    return OpenedArm(runner, difference)


def loops_seal(cache: Path, dtype: torch.dtype) -> Path:
    """Return the file that exists once loops for a number format have been compiled by this numba for this CPU."""
    sources = sorted((Path(numba_loader.__file__).with_name("numba")).glob("*.py"))
    parts = [str(dtype), version("numba"), repr(read_cpu()), *(source.read_text() for source in sources)]
    return cache / LOOPS / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.compiled"


def max_difference(expected: Arrays, answer: Arrays) -> float:
    """Return the maximum difference of two answers of the same model."""
    return max(float(np.abs(expected[name].astype(np.float64) - answer[name]).max(initial=0.0)) for name in expected)


def _options(spec: BundleSpec, depth: int) -> list[dict[str, Any]]:
    """Return the options of jobs without and with merging."""
    merged = default_schedule(spec).expand(depth)
    return [{"merge": (0,) * depth}, {"merge": merged if any(merged) else (1,) * depth}]


def _compare_times(model: LoadedModel, runner: ArmRunner, layout: Layout, arrays: Arrays, *, may_be_slow: bool) -> None:
    """Take turns with PyTorch. Raises ArmError if the arm is so slow that trials of it would delay requests."""
    if may_be_slow:
        return
    seconds: list[float] = []
    for one in (model, runner):
        times = []
        for _ in range(ROUNDS):
            started = layout.clock()
            for options in _options(model.spec, model.depth):
                one.forward(arrays, options)
            times.append(layout.clock() - started)
        seconds.append(min(times))
    if seconds[1] > MAX_RATIO * seconds[0]:
        raise ArmError(f"it takes {seconds[1] / seconds[0]:.1f} times as long as PyTorch in {next(model.model.parameters()).dtype}")
