"""Loading a bundle, so that it serves at once: by PyTorch, and by the arms that won on this machine before."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.bundle import Bundle, BundleError, BundleSpec
from models.loading import LoadedModel, load, unsupported_reason
from server.scheduler.batcher import NEAR_BEST_SHARE, NEAR_BEST_SHARE_STEPS, StepTimes
from server.tasks.registry import main_task
from server.telemetry import logs
from server.worker.backends.learned_cache import Conditions, LearnedBundle, LearnedCache
from server.worker.backends.learner import BackendSetting, Format
from server.worker.backends.runner import Backends, ModelMemory, is_precise
from server.worker.backends.verification import DTYPES, default_schedule, sample
from server.worker.device_layout import Layout
from server.worker.executors import OneShot, check_outputs
from server.worker.stepwise import Stepwise, TypicalJob

log = logs.get(__name__)


@dataclass(frozen=True)
class ReadyBundle:
    """A bundle that is ready to serve."""

    executor: OneShot | Stepwise
    steps: StepTimes
    """Times of batches that were learned before."""
    learned: LearnedBundle
    loaded_format: Format = "float32"
    backends: Backends | None = None
    """Backends of its batches; None for jobs of several steps."""

    def number_format(self, size: int) -> tuple[str, float | None]:
        """Return the number format of default batches of `size`, and the maximum difference of its answers from float32's, if known."""
        if self.backends is not None:
            return self.backends.number_format(size)
        return self.loaded_format, 0.0 if self.loaded_format == "float32" else None

    def log_fields(self) -> dict[str, Any]:
        name, difference = self.number_format(self.steps.best)
        fields = {"dtype": name, "max_difference": difference, "batch": self.steps.best}
        speed = self.steps.items_per_second
        return fields | ({"items_per_second": round(speed, 1)} if speed else {})  # 0 until a batch was timed


@dataclass(frozen=True)
class Loader:
    """The loader of a worker's bundles."""

    layout: Layout
    dtype: str
    """Setting: `auto`, `float32` or the 16-bit format of the device."""
    cache: LearnedCache
    backend: BackendSetting = "eager"
    memory: ModelMemory = field(default_factory=ModelMemory)

    def conditions(self, spec: BundleSpec) -> Conditions:
        return Conditions.from_spec(spec, self.layout, self.dtype, self.backend)

    def load(self, bundle: Bundle) -> ReadyBundle:
        """Load a bundle. If nothing was learned of it before, one batch shows that it runs. Raises BundleError, and what a batch raises."""
        spec = bundle.spec
        if (reason := unsupported_reason(spec)) is not None:
            raise BundleError(reason)
        stored = self.cache.find(self.conditions(spec))
        learned = stored or LearnedBundle(self.layout.largest_batch)
        loaded: Format = self.layout.half if self.dtype == self.layout.half and not is_precise(spec) else "float32"
        model = load(bundle, device=self.layout.device, dtype=DTYPES[loaded], packed=True)
        if model.steps is not None:
            return self._stepwise(model, learned, loaded)
        cache = self.cache.folder
        backends = Backends(bundle, model, self.layout, self.backend, self.dtype, cache, learned.rungs, self.memory)
        if stored is None:
            self._show(backends, model)
        with self.memory.using(backends):
            backends.open_settled()
        steps = learned.step_times(NEAR_BEST_SHARE, self.layout.largest_batch)
        return ReadyBundle(OneShot(backends, self.layout.device), steps, learned, loaded, backends)

    def _stepwise(self, model: LoadedModel, learned: LearnedBundle, loaded: Format) -> ReadyBundle:
        assert model.steps is not None
        if self.backend not in ("auto", "eager"):
            reason = f"its jobs take several steps ({model.steps.unit}), and those PyTorch takes: `auto` and `eager` mean that"
            log.warning("backend left out", bundle=model.spec.id, backend=self.backend, reason=reason)
        if learned.typical_job is None:
            learned = LearnedBundle(learned.largest, learned.seconds, typical_job=measure_typical_job(model))
        self.memory.pin(model.steps, sum(parameter.nbytes for parameter in model.model.parameters()) or model.spec.size)
        executor = Stepwise(model.steps, self.layout.device, learned.typical_job)
        return ReadyBundle(executor, learned.step_times(NEAR_BEST_SHARE_STEPS, self.layout.largest_batch), learned, loaded)

    def _show(self, backends: Backends, model: LoadedModel) -> None:
        """Run a typical batch, and one job of every other kind that the bundle takes. Raises ValueError if one has no answer."""
        options = {"merge": default_schedule(model.spec).expand(model.depth)}
        check_outputs(backends.forward(sample(model.spec, 1), options), 1, model.spec)
        task = main_task(model.spec)
        for arrays in task.samples(model.spec)[1:] if task is not None else ():
            check_outputs(model.forward({name: array[None] for name, array in arrays.items()}, {}), 1, model.spec)


def measure_typical_job(model: LoadedModel) -> TypicalJob:
    """Start a typical job and take its first step."""
    assert model.steps is not None
    rung = model.spec.rung(model.spec.default_rung) if model.spec.default_rung else None
    sight = None if rung is None else rung.merge_sight
    options = {"merge": default_schedule(model.spec).expand(model.depth)}
    options |= {} if sight is None else {"merge_sight": sight.expand(model.depth)}
    started = time.monotonic()
    job = {name: np.array(rows[0]) for name, rows in sample(model.spec, 1).items()}
    (state,) = model.steps.start([job], [options])
    start_seconds, started = time.monotonic() - started, time.monotonic()
    model.steps.step([state], [False])
    return TypicalJob(model.steps.cost(state), state.total, state.nbytes, start_seconds, time.monotonic() - started)
