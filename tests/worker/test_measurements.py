"""What warm-up measured and a later start reads again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from models.bundle import Bundle, replace_spec
from models.bundle_schema import Int8
from server.scheduler.step_times import StepTimes
from server.worker import measurement_cache
from server.worker.backend_times import BACKENDS, BackendTimes
from server.worker.background_tuning import Tuner, TunerTimings
from server.worker.device_layout import Layout
from server.worker.measurement_cache import MOST_FILES, Conditions, Measured, Measurements
from server.worker.stepwise import Stepwise, Usual
from server.worker.warmup import Loader, Warm
from tests.support.bundles.vit import write_null, write_tiny_vit

LAYOUT = Layout(torch.device("cpu"), slots=1, threads=1, largest_batch=4)
MEASURED = Measured(dtype="bfloat16", largest=4, seconds={1: 0.01, 2: 0.011, 4: 0.03}, at=1000.0, max_difference=0.02)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_vit(tmp_path / "bundles")


@pytest.fixture
def conditions(bundle: Bundle) -> Conditions:
    return Conditions.of(bundle.spec, LAYOUT, "auto")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def the_file(folder: Path) -> Path:
    [path] = (folder / "warm-up").iterdir()
    return path


def test_a_later_start_finds_what_was_kept(folder: Path, conditions: Conditions) -> None:
    Measurements(folder).keep(conditions, MEASURED)
    assert Measurements(folder).find(conditions) == MEASURED


def test_a_ladder_of_hundreds_of_rungs_is_found_again(folder: Path, conditions: Conditions) -> None:
    times, steps = BackendTimes(), StepTimes(1)
    steps.record(1, 0.01)
    for rung in range(300):
        for backend in BACKENDS:
            for size in (1, 2, 4, 8):
                times.record((13,) * 23 + (rung,), backend, size, size / 77)
    measured = Measured("float32", 1, steps.seconds, 1000.0, times.to_json())
    Measurements(folder).keep(conditions, measured)
    assert Measurements(folder).find(conditions) == measured


def test_a_bundle_that_was_measured_is_warm_without_measuring(folder: Path, bundle: Bundle, conditions: Conditions) -> None:
    Measurements(folder).keep(conditions, MEASURED)
    warm = Loader(LAYOUT, "auto", Measurements(folder)).warm_up(bundle)
    assert warm.measured.dtype == "bfloat16"
    assert (warm.steps.best, warm.steps.seconds) == (2, MEASURED.seconds)


def test_a_machine_may_have_onnx_runtime_for_gpus_alone(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "onnxruntime":
            raise PackageNotFoundError(package)
        return "1.20.0"

    monkeypatch.setattr(measurement_cache, "version", version)
    assert Conditions.of(bundle.spec, LAYOUT, "auto").onnxruntime == "1.20.0"


def test_what_is_measured_is_kept(folder: Path, bundle: Bundle, conditions: Conditions) -> None:
    warm = Loader(LAYOUT, "float32", Measurements(folder)).measure(bundle)
    assert Measurements(folder).find(Conditions.of(bundle.spec, LAYOUT, "float32")) == warm.measured
    assert warm.measured.max_difference == 0.0
    assert Measurements(folder).find(conditions) is None, "another setting asks another question"


@pytest.mark.parametrize(
    "changed",
    [{"torch": "0.1"}, {"cpu": "another"}, {"flags": ["avx9"]}, {"bundle": "0" * 64}, {"threads": 7}],
    ids=lambda changed: next(iter(changed)),
)
def test_other_conditions_are_measured_anew(folder: Path, conditions: Conditions, changed: dict[str, object]) -> None:
    Measurements(folder).keep(conditions, MEASURED)
    assert Measurements(folder).find(msgspec.structs.replace(conditions, **changed)) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"\xff\x00" * 100,
        lambda content: b"[" * 100_000,
        lambda content: content.replace(b"bfloat16", b"float8"),
        lambda content: content.replace(b"0.011", b"-1"),
        lambda content: content.replace(b"0.011", b"1e300"),
        lambda content: content.replace(b'"largest":4', b'"largest":0'),
        lambda content: content.replace(b'"v":3', b'"v":4'),
        lambda content: json.dumps({**json.loads(content), "conditions": {**json.loads(content)["conditions"], "cpus": 999}}).encode(),
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_and_replaced(
    folder: Path, bundle: Bundle, conditions: Conditions, damage: Callable[[bytes], bytes]
) -> None:
    Measurements(folder).keep(conditions, MEASURED)
    content = the_file(folder).read_bytes()
    the_file(folder).write_bytes(damage(content))
    assert damage(content) != content
    assert Measurements(folder).find(conditions) is None
    warm = Loader(LAYOUT, "auto", Measurements(folder)).measure(bundle)
    assert Measurements(folder).find(conditions) == warm.measured


def test_unwritable_folder_only_means_measuring_again(tmp_path: Path, bundle: Bundle, conditions: Conditions) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    kept = Measurements(tmp_path / "cache")
    assert Loader(LAYOUT, "float32", kept).measure(bundle).measured.dtype == "float32"
    assert kept.find(conditions) is None
    Measurements(None).keep(conditions, MEASURED)


def test_the_files_do_not_pile_up_and_those_in_use_stay(folder: Path, conditions: Conditions) -> None:
    kept = Measurements(folder)
    kept.keep(conditions, MEASURED)
    for threads in range(2, MOST_FILES + 1):
        kept.keep(msgspec.structs.replace(conditions, threads=threads), MEASURED)
    for path in (folder / "warm-up").iterdir():
        os.utime(path, (1, 1))
    assert kept.find(conditions) == MEASURED
    for threads in range(1000, 1000 + MOST_FILES - 1):
        kept.keep(msgspec.structs.replace(conditions, threads=threads), MEASURED)
    assert len(list((folder / "warm-up").iterdir())) == MOST_FILES
    assert kept.find(conditions) == MEASURED


class Worker:
    """Is idle or not."""

    def __init__(self, *answers: bool) -> None:
        """answers: before it is idle for ever, if any are given busy."""
        self._answers = list(answers)
        self.always = not answers
        self.lent = 0
        self.turns = 0

    @property
    def idle(self) -> bool:
        return self._answers.pop(0) if self._answers else self.always

    def lend(self) -> None:
        self.lent += 1
        self.turns += 1

    def take_back(self) -> None:
        self.lent -= 1


def test_what_is_old_is_measured_again_while_nothing_runs(folder: Path, bundle: Bundle, conditions: Conditions) -> None:
    kept = Measurements(folder)
    kept.keep(conditions, MEASURED)
    warm = Loader(LAYOUT, "auto", kept).warm_up(bundle)
    worker: Any = Worker()
    tuner = Tuner(Loader(LAYOUT, "auto", kept), worker, timings=TunerTimings(quiet=0.2))
    tuner.loaded(bundle, warm)

    worker.always = False
    tuner.look([bundle.spec.id])
    worker.always = True
    tuner.look([bundle.spec.id])
    assert kept.find(conditions) == MEASURED, "it has not been quiet for long enough"
    time.sleep(0.3)
    tuner.look([])
    assert kept.find(conditions) == MEASURED, "it is not loaded"
    tuner.look([bundle.spec.id])
    again = kept.find(conditions)
    assert again is not None and again.age < 60
    time.sleep(0.3)
    tuner.look([bundle.spec.id])
    assert kept.find(conditions) == again, "once is enough"


def test_a_request_that_comes_while_measuring_goes_first(folder: Path, bundle: Bundle, conditions: Conditions) -> None:
    kept = Measurements(folder)
    kept.keep(conditions, MEASURED)
    worker: Any = Worker(True, True, True)
    tuner = Tuner(Loader(LAYOUT, "auto", kept), worker, timings=TunerTimings(quiet=0.0))
    tuner.loaded(bundle, Loader(LAYOUT, "auto", kept).warm_up(bundle))
    tuner.look([bundle.spec.id])
    assert not worker.idle, "it had begun"
    assert kept.find(conditions) == MEASURED


def test_measured_times_serve_at_once_however_slow_a_batch(tmp_path: Path, folder: Path) -> None:
    slow = write_null(tmp_path / "slow", milliseconds=3_600_000, steps=[3])
    known = Measured(
        dtype="float32", largest=4, seconds={1: 3000.0}, at=1000.0, usual=Usual(cost=2.0, total=3, nbytes=5, start_seconds=1.0)
    )
    Measurements(folder).keep(Conditions.of(slow.spec, LAYOUT, "auto"), known)
    warm = Loader(LAYOUT, "auto", Measurements(folder)).warm_up(slow)
    assert isinstance(warm.executor, Stepwise) and warm.executor.usual == known.usual


def test_unmeasured_bundle_serves_float32_until_measured_idle(folder: Path, bundle: Bundle) -> None:
    kept, swapped = Measurements(folder), list[Warm]()
    worker: Any = Worker()
    warm = Loader(LAYOUT, "auto", kept, "auto").warm_up(bundle)
    assert (warm.measured.dtype, warm.steps.seconds, warm.steps.best) == ("float32", {}, 1)
    timings = TunerTimings(head_start=0.0)
    tuner = Tuner(Loader(LAYOUT, "auto", kept, "auto"), worker, lambda _, warm: swapped.append(warm), timings=timings)
    tuner.loaded(bundle, warm)
    tuner.look([bundle.spec.id])
    assert [warm.measured for warm in swapped] == [kept.find(Conditions.of(bundle.spec, LAYOUT, "auto", "auto"))]
    tuner.look([bundle.spec.id])
    assert len(swapped) == 1, "none is unmeasured any more"


def test_unmeasured_bundle_is_measured_in_one_slot_if_busy(folder: Path, bundle: Bundle) -> None:
    kept, swapped = Measurements(folder), list[Warm]()
    worker: Any = Worker()
    worker.always = False
    timings = TunerTimings(patience=0.0, stretch=0.0, pause=0.0)
    tuner = Tuner(Loader(LAYOUT, "auto", kept), worker, lambda _, warm: swapped.append(warm), timings=timings)
    tuner.loaded(bundle, Loader(LAYOUT, "auto", kept).warm_up(bundle))
    tuner.look([bundle.spec.id])
    assert len(swapped) == 1
    assert worker.turns > 1 and worker.lent == 0, "it gives the slot back in between, and in the end"


def test_what_a_format_costs_is_measured_and_kept(bundle: Bundle, folder: Path) -> None:
    exact, short = (Loader(LAYOUT, dtype, Measurements(folder)).measure(bundle) for dtype in ("float32", "bfloat16"))
    assert exact.format(1) == ("float32", 0.0)
    name, difference = short.format(1)
    assert name == "bfloat16" and difference is not None and 0 < difference < 20
    assert Loader(LAYOUT, "bfloat16", Measurements(folder)).warm_up(bundle).format(1) == (name, difference)


def test_integers_tell_how_far_they_are_from_float32(bundle: Bundle, folder: Path) -> None:
    measured = {name: {"float32": 1.0, "int8": 1.0} for name in ("off", "full", "fast")}
    calibrated = replace_spec(
        bundle, bundle.spec.model_copy(update={"int8": Int8.model_validate({"bound": 0.1, "images": 300, "rungs": measured})})
    )
    warm = Loader(LAYOUT, "float32", Measurements(folder), "int8").measure(calibrated)
    assert warm.backends is not None
    warm.backends.open()
    name, difference = warm.format(1)
    assert name == "int8" and difference is not None and difference > 0
