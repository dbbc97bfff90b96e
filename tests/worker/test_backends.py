"""A bundle's batches run by the backend that was measured fastest, and by PyTorch where that fails."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kernels import numba_loader
from models.bundle import Bundle, write
from models.bundle_schema import Accuracies, Int8
from models.loading import load
from server.supervisor.private_valkey import PrivateValkey
from server.worker.backend_times import Backend, BackendTimes
from server.worker.backends.runner import Backends, BackendSetting, Runner
from server.worker.background_tuning import Tuner, TunerTimings
from server.worker.device_layout import Layout
from server.worker.executors import Arrays, Computed, OneShot
from server.worker.measurement_cache import Conditions, Measurements
from server.worker.warmup import Loader, Warm
from tests.support.bundles.onnx import SIZE, colours, write_graph
from tests.support.bundles.vit import write_tiny_vit
from tests.support.live_service import gateway, worker_process
from tests.support.queue import delivery
from tests.support.waiting import START_S, eventually

LAYOUT = Layout(torch.device("cpu"), slots=1, threads=1, largest_batch=4)
OFF, FAST = (0, 0), (4, 4)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_vit(tmp_path / "bundles")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def pictures(count: int) -> Arrays:
    return {"pixels": np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)}


def backends(bundle: Bundle, times: BackendTimes | None = None, setting: BackendSetting = "auto") -> Backends:
    return Backends(bundle, load(bundle), LAYOUT, setting, None, pictures(2), times)


def calibrated(bundle: Bundle, **rungs: tuple[float, float]) -> Bundle:
    """With what int8 was measured to cost on these rungs, of which two points in a hundred are allowed."""
    accuracies = {name: Accuracies(float32=float32, int8=int8) for name, (float32, int8) in rungs.items()}
    spec = bundle.spec.model_copy(update={"int8": Int8(bound=0.02, images=100, rungs=accuracies)})
    return write(bundle.path.parent.parent, spec, bundle.weights_path, overwrite=True)


def loader(folder: Path) -> Loader:
    return Loader(LAYOUT, "float32", Measurements(folder), "auto")


def tuner_of(folder: Path, idle: bool = True) -> Tuner:
    slots: Any = SimpleNamespace(idle=idle)
    return Tuner(loader(folder), slots, timings=TunerTimings(head_start=0.0))


def look(tuner: Tuner, bundle: Bundle) -> None:
    """Until it has nothing left to do."""

    def has_ended() -> bool:
        tuner.look([bundle.spec.id])
        return not tuner.tuning

    eventually(has_ended, "the ladder is warm", START_S)  # compiling loops may take a minute


def test_the_first_start_measures_and_a_restart_goes_by_it(bundle: Bundle, folder: Path) -> None:
    first = loader(folder).measure(bundle)
    assert set(first.measured.backends["0,0"]) == {"eager", "onnx"}
    again = loader(folder).warm_up(bundle)
    assert again.measured == first.measured


def test_the_answers_are_those_of_the_model_whatever_runs(bundle: Bundle) -> None:
    times = BackendTimes()
    for schedule in (OFF, FAST):
        times.record(schedule, "eager", 4, 1.0)
        times.record(schedule, "onnx", 4, 0.1)
    both = backends(bundle, times)
    both.open()
    for merge in (OFF, FAST):
        assert both.choose(4, {"merge": merge}).backend == "onnx"
        expected = load(bundle).forward(pictures(4), {"merge": merge})
        np.testing.assert_allclose(both.forward(pictures(4), {"merge": merge})["logits"], expected["logits"], rtol=1e-4, atol=1e-4)


def test_schedules_that_merge_the_same_tokens_are_one(bundle: Bundle) -> None:
    both = backends(bundle)
    assert both.schedule((1000, 1000)) == both.schedule((8, 4)) == (8, 4)


def test_only_pytorch_traces(bundle: Bundle) -> None:
    times = BackendTimes({FAST: {"eager": {1: 1.0}, "onnx": {1: 0.1}}})
    both = backends(bundle, times)
    both.open()
    assert "groups" in both.forward(pictures(1), {"merge": FAST, "trace": True})


def test_slow_merging_is_left_out_and_answer_reports_it(bundle: Bundle) -> None:
    both = backends(bundle, BackendTimes({OFF: {"eager": {2: 1.0}}, FAST: {"eager": {2: 2.0}}}))
    answer = both.forward(pictures(2), {"merge": list(FAST)})
    assert answer["schedule"].tolist() == [[0, 0], [0, 0]]
    assert answer["tokens"].tolist() == [[17, 17], [17, 17]]
    assert "schedule" not in both.forward(pictures(2), {"merge": [3, 3]}), "no rung of the ladder: exactly as asked"


class Broken:
    """A backend that fails on every batch."""

    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        raise RuntimeError("no such instruction")


class Overflowing:
    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        return {"logits": np.full((len(arrays["pixels"]), 10), np.nan, np.float32)}


@pytest.mark.parametrize("failing", [Broken(), Overflowing()])
def test_failing_backend_is_replaced_by_pytorch_for_good(bundle: Bundle, failing: Runner) -> None:
    both = backends(bundle, BackendTimes({OFF: {"eager": {1: 1.0}, "onnx": {1: 0.1}}}))
    both.add("onnx", failing)
    expected = load(bundle).forward(pictures(1), {"merge": OFF})["logits"]
    np.testing.assert_array_equal(both.forward(pictures(1), {"merge": OFF})["logits"], expected)
    assert both.choose(1, {"merge": OFF}).backend == "eager"


def test_a_model_whose_scores_are_no_numbers_is_not_served(bundle: Bundle, folder: Path) -> None:
    weights = load_file(bundle.weights_path)
    weights["head.weight"][3] = torch.nan
    file = folder.with_name("weights")
    save_file(weights, file)
    with pytest.raises(ValueError, match="output logits is infinite or not a number"):
        warm(write(bundle.path.parent.parent, bundle.spec, file, overwrite=True), folder)


def test_backend_is_not_blamed_for_failures_of_pytorch(bundle: Bundle) -> None:
    both = backends(bundle, BackendTimes({OFF: {"eager": {1: 1.0}, "onnx": {1: 0.1}}}))
    both.open()
    with pytest.raises(ValueError, match="images"):
        both.forward({"pixels": np.zeros((1, 33, 33, 3), np.uint8)}, {"merge": OFF})
    assert both.choose(1, {"merge": OFF}).backend == "onnx"


@pytest.mark.parametrize("setting", ["onnx", "int8", "auto"])
def test_a_backend_that_cannot_be_opened_leaves_pytorch(bundle: Bundle, setting: BackendSetting) -> None:
    both = Backends(bundle, load(bundle), LAYOUT, setting, None, {"pixels": np.zeros((2, 9, 9, 3), np.uint8)})
    both.open()
    assert both.choose(1, {"merge": OFF}).backend == "eager"


def test_int8_runs_only_rungs_whose_accuracy_allows_it(bundle: Bundle) -> None:
    measured = calibrated(bundle, off=(0.90, 0.89), fast=(0.90, 0.87))
    fastest: dict[Backend, dict[int, float]] = {"eager": {1: 1.0}, "onnx": {1: 0.6}, "int8": {1: 0.4}}
    rather: dict[Backend, dict[int, float]] = {"eager": {1: 0.6}, "onnx": {1: 0.4}, "int8": {1: 0.2}}
    both = backends(measured, BackendTimes({OFF: fastest, FAST: rather, (3, 3): rather}))
    both.open()
    assert both.choose(1, {"merge": OFF}).backend == "int8"
    assert both.choose(1, {"merge": FAST}) == ("onnx", FAST)
    assert both.choose(1, {"merge": (3, 3)}).backend == "onnx", "nobody measured its accuracy"
    assert both.by_rung(1) == {"off": "int8", "full": "int8", "fast": "onnx"}


def test_rungs_of_one_schedule_are_reported_and_int8_if_all_may(bundle: Bundle) -> None:
    twice = [*bundle.spec.ladder, bundle.spec.rung("fast").model_copy(update={"name": "fast-too"})]
    measured = calibrated(bundle, off=(0.90, 0.89), fast=(0.90, 0.87), **{"fast-too": (0.90, 0.90)})
    measured = Bundle(path=measured.path, spec=measured.spec.model_copy(update={"ladder": twice}))
    slow: dict[Backend, dict[int, float]] = {"eager": {1: 1.0}, "onnx": {1: 0.6}, "int8": {1: 0.4}}
    fast: dict[Backend, dict[int, float]] = {"eager": {1: 0.6}, "onnx": {1: 0.4}, "int8": {1: 0.2}}
    both = backends(measured, BackendTimes({OFF: slow, FAST: fast}))
    both.open()
    assert both.by_rung(1) == {"off": "int8", "full": "int8", "fast": "onnx", "fast-too": "onnx"}


def test_int8_is_not_offered_by_a_bundle_that_was_not_calibrated(bundle: Bundle) -> None:
    both = backends(bundle, setting="int8")
    both.open()
    assert both.choose(1, {"merge": OFF}).backend == "eager"


@pytest.mark.parametrize("setting", ["int8", "onnx", "fused"])
def test_a_foreign_graph_runs_as_it_is_whatever_is_set(tmp_path: Path, setting: BackendSetting) -> None:
    graph = write_graph(tmp_path / "bundles", colours())
    arrays = {"pixels": np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)}
    several = Backends(graph, load(graph), LAYOUT, setting, None, arrays)
    several.open()
    assert several.candidates == ("eager",)
    np.testing.assert_array_equal(several.forward(arrays, {"merge": [0]})["logits"], load(graph).forward(arrays, {"merge": [0]})["logits"])


def warm(bundle: Bundle, folder: Path) -> Warm:
    return loader(folder).measure(bundle)


def test_every_rung_is_measured_when_idle_and_remembered(bundle: Bundle, folder: Path) -> None:
    tuner = tuner_of(folder)
    tuner.loaded(bundle, warm(bundle, folder))
    look(tuner, bundle)
    kept = Measurements(folder).find(Conditions.of(bundle.spec, LAYOUT, "float32", "auto"))
    assert kept is not None and {schedule: set(times) for schedule, times in kept.backends.items()} == {
        "0,0": {"eager", "onnx"},
        "4,4": {"eager", "fused", "onnx"},
    }


def test_what_cannot_be_opened_is_not_waited_for(bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("numba does not know this CPU")

    monkeypatch.setattr(numba_loader, "load_compiled_loops", broken)
    made = warm(bundle, folder)
    tuner = tuner_of(folder)
    tuner.loaded(bundle, made)
    look(tuner, bundle)
    assert made.backends is not None and all(made.backends.knows(schedule, 1) for schedule in (OFF, FAST))
    assert made.backends.choose(1, {"merge": FAST}).backend != "fused"


def test_unloadable_evicted_weights_end_no_worker(bundle: Bundle, folder: Path) -> None:
    """As where a folder is removed right after its bundle was ready, with OPSIN_MODEL_BYTES."""
    made = warm(bundle, folder)
    assert made.backends is not None
    tuner = tuner_of(folder)
    tuner.loaded(bundle, made)
    made.backends.release()
    bundle.weights_path.unlink()
    tuner.look([bundle.spec.id])
    assert not tuner.tuning


def test_a_request_goes_first(bundle: Bundle, folder: Path) -> None:
    tuner = tuner_of(folder, idle=False)
    tuner.loaded(bundle, warm(bundle, folder))
    tuner.look([bundle.spec.id])
    assert tuner.tuning == [bundle.spec.id]
    tuner.look([])
    assert not tuner.tuning, "it is not loaded any more"


def batch(executor: OneShot, merge: tuple[int, ...], size: int = 1) -> Computed:
    [computed] = executor.run([delivery(pixels=pictures(1)["pixels"][0], merge=merge) for _ in range(size)])
    assert isinstance(computed, Computed)
    return computed


@pytest.mark.parametrize("merge", [OFF, FAST, (3, 2)])
def test_loops_run_where_tokens_merge_and_answer_as_pytorch_does(bundle: Bundle, folder: Path, merge: tuple[int, ...]) -> None:
    fused = Backends(bundle, load(bundle), LAYOUT, "fused", folder / "graphs", pictures(2))
    fused.open()
    assert fused.choose(2, {"merge": merge}).backend == ("fused" if any(merge) else "eager")
    assert fused.choose(2, {"merge": merge, "trace": True}).backend == "eager"
    expected = load(bundle).forward(pictures(2), {"merge": merge})
    np.testing.assert_allclose(fused.forward(pictures(2), {"merge": merge})["logits"], expected["logits"], rtol=1e-4, atol=1e-4)
    assert fused.nbytes == backends(bundle).nbytes, "the weights are PyTorch's"


def test_the_first_batch_of_a_shape_is_cold_unless_it_was_warmed(bundle: Bundle, folder: Path) -> None:
    made = warm(bundle, folder)
    assert isinstance(made.executor, OneShot)
    assert [batch(made.executor, (3, 2), size).cold for size in (1, 1, 2, 2)] == [True, False, True, False]
    tuner = tuner_of(folder)
    tuner.loaded(bundle, made)
    look(tuner, bundle)
    assert not any(batch(made.executor, merge, size).cold for merge in (OFF, FAST) for size in (1, 2, 4))


async def test_worker_announces_backend_and_answers_as_pytorch(valkey: PrivateValkey, bundle: Bundle) -> None:
    with worker_process(valkey.url, bundle.path.parent.parent, backend="auto"):
        async with gateway(valkey.url) as asking:
            [info] = await asking.ready()
            assert set(info.bundles[0].backends) == {"off", "full", "fast"}
            picture = pictures(1)["pixels"]
            reply = await asking.ask(asking.job("tiny@1", picture[0]))
    expected = load(bundle).forward({"pixels": picture}, {"merge": [0, 0]})["logits"][0]
    np.testing.assert_allclose(reply.arrays["logits"].to_numpy(), expected, rtol=1e-4, atol=1e-4)
