"""A bundle's batches run by the backend that was learned to be fastest, and by PyTorch if that fails."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file

from models.bundle import Bundle, write
from models.bundle_schema import Accuracies, Int8
from models.loading import load
from server.scheduler.batcher import StepTimes
from server.supervisor.private_valkey import PrivateValkey
from server.worker.backends import candidates
from server.worker.backends.candidates import Candidates, open_all
from server.worker.backends.learned_cache import LearnedBundle, LearnedCache
from server.worker.backends.learner import Arm, BackendSetting, Kind, LearnedRung, Turn
from server.worker.backends.loading import Loader, ReadyBundle
from server.worker.backends.runner import Backends, ModelMemory
from server.worker.backends.verification import ArmRunner
from server.worker.device_layout import Layout
from server.worker.executors import Arrays, ComputedBatch, OneShot
from tests.support.bundles.onnx import SIZE, colours, write_graph
from tests.support.bundles.vit import write_tiny_vit
from tests.support.live_service import gateway, worker_process
from tests.support.queue import delivery

LAYOUT = Layout(torch.device("cpu"), slots=1, threads=1, largest_batch=4)
OFF, FAST = (0, 0), (4, 4)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_vit(tmp_path / "bundles")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests that write nothing else there: loops are compiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def copy_loops(folder: Path, empty: Path) -> None:
    """Copy what is compiled, which takes seconds, without graphs and what was learned."""
    shutil.copytree(folder, empty, ignore=shutil.ignore_patterns("learned", "graphs"))


def images(count: int) -> Arrays:
    return {"pixels": np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)}


def learned_rungs(arm: Arm, *schedules: tuple[int, ...]) -> dict[str, LearnedRung]:
    """Return what is stored of a bundle whose rungs are run by an arm."""
    kinds: dict[Arm, Kind] = {"int8": "int8", "bfloat16": "bfloat16", "onnx": "graph"}
    rungs = {schedule: "float32" if arm == "onnx" and not any(schedule) else kinds.get(arm, "float32") for schedule in schedules}
    return {",".join(map(str, schedule)): LearnedRung(kind, arm, {1: arm}, {}) for schedule, kind in rungs.items()}


def backends(
    bundle: Bundle, folder: Path | None = None, setting: BackendSetting = "auto", stored: dict[str, LearnedRung] | None = None
) -> Backends:
    """Return the backends of a worker in float32, all of them open."""
    made = Backends(bundle, load(bundle), LAYOUT, setting, "float32", folder, stored)
    open_all(made)
    return made


def calibrate(bundle: Bundle, **rungs: tuple[float, float]) -> Bundle:
    """Write the bundle with accuracies in int8 on these rungs; a loss of 0.02 is allowed."""
    accuracies = {name: Accuracies(float32=float32, int8=int8) for name, (float32, int8) in rungs.items()}
    spec = bundle.spec.model_copy(update={"int8": Int8(bound=0.02, images=100, rungs=accuracies)})
    return write(bundle.path.parent.parent, spec, bundle.weights_path, overwrite=True)


def ready(bundle: Bundle, folder: Path, dtype: str = "float32", backend: BackendSetting = "auto") -> ReadyBundle:
    return Loader(LAYOUT, dtype, LearnedCache(folder), backend).load(bundle)


def run(executor: object, merge: tuple[int, ...], count: int = 1, size: int = 1) -> list[ComputedBatch]:
    assert isinstance(executor, OneShot)
    found = []
    for _ in range(count):
        [computed] = executor.run([delivery(pixels=images(1)["pixels"][0], merge=merge) for _ in range(size)])
        assert isinstance(computed, ComputedBatch)
        found.append(computed)
    return found


def test_bundle_serves_at_once_and_learns_from_its_batches(bundle: Bundle, folder: Path) -> None:
    cache, loader = LearnedCache(folder), Loader(LAYOUT, "auto", LearnedCache(folder), "auto")
    made, worker = loader.load(bundle), Candidates(cache)
    assert made.backends is not None and set(made.backends.backends_by_rung(1).values()) == {"eager"}
    worker.add(bundle, loader.conditions(bundle.spec), made.learned, made.backends)
    assert made.backends.unopened, "it serves before anything else is open"
    steps, learner = StepTimes(4), made.backends.learner
    while not {"0,0", "4,4"} <= set(learner.snapshot()):  # each round opens one, or runs enough batches for a trial
        worker.look({bundle.spec.id: steps})
        for merge in (OFF, FAST):
            for computed in run(made.executor, merge, 50):
                steps.record(1, computed.seconds)
    worker.look({bundle.spec.id: steps})
    again = loader.load(bundle)
    assert again.backends is not None and again.backends.snapshot().keys() == {"0,0", "4,4"}
    assert again.steps.seconds == steps.seconds
    for merge in (OFF, FAST):
        assert again.backends.choose(merge, 1, {}) == Turn(learner.leader(merge, 1)), "before anything is opened in the background"


def scores(backends: Backends, merge: tuple[int, ...], batch_size: int) -> Arrays:
    """Return the logits of 32 images that come in batches of a size, and the numbers of tokens."""
    pixels = images(32)["pixels"]
    parts = [backends.forward({"pixels": pixels[i : i + batch_size]}, {"merge": merge}) for i in range(0, len(pixels), batch_size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_settled_answers_depend_on_no_batch_size_and_no_restart(bundle: Bundle, empty: Path, folder: Path) -> None:
    copy_loops(folder, empty)
    cache, loader = LearnedCache(empty), Loader(LAYOUT, "auto", LearnedCache(empty), "auto")
    before = loader.load(bundle)
    assert before.backends is not None
    open_all(before.backends)
    while not {"0,0", "4,4"} <= set(before.backends.snapshot()):
        for merge in (OFF, FAST):
            run(before.executor, merge, 50)
    cache.store(loader.conditions(bundle.spec), LearnedBundle(4, {1: 0.01}, before.backends.snapshot()))
    after = loader.load(bundle)
    assert after.backends is not None
    for merge, schedule in ((OFF, "0,0"), (FAST, "4,4")):
        expected = scores(before.backends, merge, 1)
        close = np.diff(np.sort(expected["logits"], axis=1)[:, -2:], axis=1)[:, 0] < 0.02
        is_exact = before.backends.snapshot()[schedule].kind == "float32"
        for backends in (before.backends, after.backends):
            for batch_size in (1, 8, 32):
                found = scores(backends, merge, batch_size)
                assert (found["tokens"] == (17, 17 - sum(merge))).all(), "the rung that was requested"
                assert (close | (found["logits"].argmax(axis=1) == expected["logits"].argmax(axis=1))).all()
                if is_exact:
                    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-4, atol=1e-4)


def test_the_answers_are_those_of_the_model_whatever_runs(bundle: Bundle, folder: Path) -> None:
    both = backends(bundle, folder)
    for merge in (OFF, FAST):
        assert "onnx" in both.open_arms({"merge": merge})
        expected = load(bundle).forward(images(4), {"merge": merge})["logits"]
        for arm in both.open_arms({"merge": merge}):
            np.testing.assert_allclose(both.run_arm(arm, images(4), {"merge": merge})["logits"], expected, rtol=1e-4, atol=1e-4)
            assert both.differences[arm] < 1e-3


def test_schedules_that_merge_the_same_tokens_are_one(bundle: Bundle) -> None:
    both = Backends(bundle, load(bundle), LAYOUT, "auto")
    assert both.schedule((1000, 1000)) == both.schedule((8, 4)) == (8, 4)


def test_only_pytorch_traces_and_answers_deterministically(bundle: Bundle, folder: Path) -> None:
    both = backends(bundle, folder, stored=learned_rungs("onnx", OFF, FAST))
    assert "groups" in both.forward(images(1), {"merge": FAST, "trace": True})
    assert both.choose(FAST, 1, {}) == Turn("onnx")
    assert both.choose(FAST, 1, {"deterministic": True}) == Turn("eager")


def test_merging_is_done_as_requested_however_slow(bundle: Bundle) -> None:
    both = Backends(bundle, load(bundle), LAYOUT, "auto", "auto")
    for seconds, schedule in ((1.0, OFF), (5.0, FAST)):
        for _ in range(9):
            both.learner.observe(schedule, Turn("eager"), 2, seconds, is_cold=False)
    answer = both.forward(images(2), {"merge": list(FAST)})
    assert answer["tokens"].tolist() == [[17, 9], [17, 9]] and "schedule" not in answer


class Broken:
    """A backend that fails on every batch."""

    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        raise RuntimeError("no such instruction")


class OverflowingModel:
    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> Arrays:
        return {"logits": np.full((len(arrays["pixels"]), 10), np.nan, np.float32)}


@pytest.mark.parametrize("failing", [Broken(), OverflowingModel()])
def test_failing_backend_is_replaced_by_pytorch_for_good(bundle: Bundle, failing: ArmRunner) -> None:
    both = Backends(bundle, load(bundle), LAYOUT, "auto", stored=learned_rungs("onnx", OFF))
    both.add("onnx", failing)
    expected = load(bundle).forward(images(1), {"merge": OFF})["logits"]
    np.testing.assert_array_equal(both.forward(images(1), {"merge": OFF})["logits"], expected)
    assert both.choose(OFF, 1, {}) == Turn("eager")
    assert "onnx" not in both.unopened, "it is not opened again"


def test_a_model_whose_scores_are_no_numbers_is_not_served(bundle: Bundle, empty: Path) -> None:
    weights = load_file(bundle.weights_path)
    weights["head.weight"][3] = weights["norm.weight"][:] = torch.finfo(torch.float32).max
    file = empty.with_name("weights")
    save_file(weights, file)
    with pytest.raises(ValueError, match="output logits is infinite or not a number"):
        ready(write(bundle.path.parent.parent, bundle.spec, file, overwrite=True), empty)


def test_backend_is_not_blamed_for_failures_of_pytorch(bundle: Bundle, folder: Path) -> None:
    both = backends(bundle, folder, stored=learned_rungs("onnx", OFF))
    with pytest.raises(ValueError, match="images"):
        both.forward({"pixels": np.zeros((1, 33, 33, 3), np.uint8)}, {"merge": OFF})
    assert both.choose(OFF, 1, {}) == Turn("onnx")


@pytest.mark.parametrize("setting", ["onnx", "auto"])
def test_a_graph_on_a_full_disk_is_left_out(bundle: Bundle, empty: Path, folder: Path, setting: BackendSetting) -> None:
    copy_loops(folder, empty)
    (empty / "graphs").write_text("a file where the folder should be")
    with structlog.testing.capture_logs() as logs:
        both = backends(bundle, empty, setting)
    [line] = [line for line in logs if line.get("backend") == "onnx"]
    assert line["event"] == "backend left out" and "its graph was not written: FileExistsError" in line["reason"]
    assert both.choose(OFF, 1, {}) == Turn("eager")


def test_a_graph_that_takes_too_long_is_left_out(bundle: Bundle, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "MAX_CHILD_S", 0.01)
    both = backends(bundle, empty, "onnx")
    assert both.open_arms({"merge": OFF}) == ["eager"] and not both.unopened


def test_without_a_cache_folder_a_graph_is_written_all_the_same(bundle: Bundle) -> None:
    both = backends(bundle, None)
    assert both.open_arms({"merge": FAST}) == ["eager", "onnx"], "compiled loops need a folder"


def test_int8_runs_only_rungs_whose_accuracy_allows_it(bundle: Bundle, folder: Path) -> None:
    measured = calibrate(bundle, off=(0.90, 0.89), fast=(0.90, 0.87))
    both = backends(measured, folder, stored=learned_rungs("int8", OFF, FAST) | {"3,3": learned_rungs("int8", OFF)["0,0"]})
    assert both.choose(OFF, 1, {}) == Turn("int8")
    assert "int8" not in both.open_arms({"merge": FAST}) and both.choose(FAST, 1, {}) == Turn("eager")
    assert both.choose((3, 3), 1, {}) == Turn("eager"), "its accuracy was not measured"
    assert both.backends_by_rung(1) == {"off": "int8", "full": "int8", "fast": "eager"}
    assert both.number_format(1)[0] == "int8" and (both.number_format(1)[1] or 0) > 0


def test_rungs_of_one_schedule_are_reported_and_int8_if_all_may(bundle: Bundle) -> None:
    twice = [*bundle.spec.ladder, bundle.spec.rung("fast").model_copy(update={"name": "fast-too"})]
    measured = calibrate(bundle, off=(0.90, 0.89), fast=(0.90, 0.87), **{"fast-too": (0.90, 0.90)})
    measured = Bundle(path=measured.path, spec=measured.spec.model_copy(update={"ladder": twice}))
    both = Backends(measured, load(measured), LAYOUT, "auto", stored=learned_rungs("int8", OFF) | learned_rungs("onnx", FAST))
    assert both.backends_by_rung(1) == {"off": "int8", "full": "int8", "fast": "onnx", "fast-too": "onnx"}


def test_int8_is_not_offered_by_a_bundle_that_was_not_calibrated(bundle: Bundle, folder: Path) -> None:
    both = backends(bundle, folder, "int8")
    assert both.choose(OFF, 1, {}) == Turn("eager")


@pytest.mark.parametrize("setting", ["int8", "onnx", "fused"])
def test_a_foreign_graph_runs_as_it_is_whatever_is_set(tmp_path: Path, setting: BackendSetting) -> None:
    graph = write_graph(tmp_path / "bundles", colours())
    arrays = {"pixels": np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)}
    several = backends(graph, tmp_path / "cache", setting)
    assert several.candidates == ("eager",)
    np.testing.assert_array_equal(several.forward(arrays, {"merge": [0]})["logits"], load(graph).forward(arrays, {"merge": [0]})["logits"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_kind_that_was_settled_answers_from_the_first_batch(bundle: Bundle, folder: Path, dtype: str) -> None:
    arm: Arm = "bfloat16" if dtype == "bfloat16" else "onnx"
    backends(bundle, folder)  # writes the graph
    made = Backends(bundle, load(bundle), LAYOUT, "auto", "auto", folder, learned_rungs(arm, OFF, FAST))
    assert arm in made.unopened
    made.learner.version = 0
    made.open_settled()
    if arm == "bfloat16" and arm not in made.open_arms({"merge": FAST}):
        pytest.skip("bfloat16 takes more than 1.5 times as long as float32 on this CPU")
    assert made.choose(FAST, 1, {}) == Turn(arm)
    assert made.number_format(1)[0] == dtype


def test_a_kind_that_left_memory_comes_back_with_the_weights(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    memory = ModelMemory(1)
    stored = learned_rungs("onnx", OFF, FAST)
    one = Backends(bundle, load(bundle), LAYOUT, "auto", "float32", folder, stored, memory)
    open_all(one)
    other = write_tiny_vit(tmp_path / "bundles", "other")
    before = one.forward(images(1), {"merge": FAST})["logits"]
    Backends(other, load(other), LAYOUT, "eager", memory=memory).forward(images(1), {"merge": FAST})
    assert not one.nbytes
    np.testing.assert_array_equal(one.forward(images(1), {"merge": FAST})["logits"], before)
    assert one.choose(FAST, 1, {}) == Turn("onnx")


def test_unloadable_evicted_weights_end_no_worker(bundle: Bundle, empty: Path) -> None:
    """A folder may be removed right after its bundle was ready, with OPSIN_MODEL_BYTES."""
    made, worker = ready(bundle, empty), Candidates(LearnedCache(empty))
    assert made.backends is not None
    worker.add(bundle, Loader(LAYOUT, "float32", LearnedCache(empty)).conditions(bundle.spec), made.learned, made.backends)
    made.backends.release()
    bundle.weights_path.unlink()
    while made.backends.unopened:
        worker.look({bundle.spec.id: StepTimes(1)})
    worker.look({})


@pytest.mark.parametrize("merge", [OFF, FAST, (3, 2)])
def test_loops_run_where_tokens_merge_and_answer_as_pytorch_does(bundle: Bundle, folder: Path, merge: tuple[int, ...]) -> None:
    fused = backends(bundle, folder, "fused")
    assert fused.choose(tuple(merge), 2, {}).arm == ("fused" if any(merge) else "eager")
    assert fused.choose(tuple(merge), 2, {"trace": True}) == Turn("eager")
    expected = load(bundle).forward(images(2), {"merge": merge})
    np.testing.assert_allclose(fused.forward(images(2), {"merge": merge})["logits"], expected["logits"], rtol=1e-4, atol=1e-4)
    assert fused.nbytes == Backends(bundle, load(bundle), LAYOUT, "eager").nbytes, "the weights are PyTorch's"


def test_the_first_batch_of_a_shape_and_trials_are_cold(bundle: Bundle, folder: Path) -> None:
    made = ready(bundle, folder)
    assert [run(made.executor, (3, 2), size=size)[0].is_new_shape for size in (1, 1, 2, 2)] == [True, False, True, False]
    assert made.backends is not None
    open_all(made.backends)
    trials = run(made.executor, OFF, 200)
    assert any(computed.is_new_shape for computed in trials[1:])


@pytest.mark.parametrize(("dtype", "exact"), [("float32", True), ("bfloat16", False)])
def test_what_a_format_costs_is_measured(bundle: Bundle, empty: Path, dtype: str, exact: bool) -> None:
    made, worker = ready(bundle, empty, dtype, "eager"), Candidates(LearnedCache(empty))
    assert made.backends is not None
    worker.add(bundle, Loader(LAYOUT, dtype, LearnedCache(empty)).conditions(bundle.spec), made.learned, made.backends)
    worker.look({bundle.spec.id: StepTimes(1)})
    name, difference = made.number_format(1)
    assert name == dtype and difference is not None and (difference == 0) == exact and difference < 20


async def test_worker_announces_backend_and_answers_as_pytorch(valkey: PrivateValkey, bundle: Bundle) -> None:
    with worker_process(valkey.url, bundle.path.parent.parent, backend="auto"):
        async with gateway(valkey.url) as asking:
            [info] = await asking.ready()
            assert set(info.bundles[0].backends) == {"off", "full", "fast"}
            pixels = images(1)["pixels"]
            reply = await asking.ask(asking.job("tiny@1", pixels[0]))
    expected = load(bundle).forward({"pixels": pixels}, {"merge": [0, 0]})["logits"][0]
    np.testing.assert_allclose(reply.arrays["logits"].to_numpy(), expected, rtol=1e-4, atol=1e-4)


def test_float16_takes_the_place_of_bfloat16_on_old_gpus(bundle: Bundle) -> None:
    old = replace(LAYOUT, half="float16")
    made = Loader(old, "float16", LearnedCache(None), "auto").load(bundle)
    assert made.number_format(1)[0] == "float16"
    learning = Loader(old, "auto", LearnedCache(None), "auto").load(bundle).backends
    assert learning is not None and "float16" in learning.candidates and "bfloat16" not in learning.candidates
