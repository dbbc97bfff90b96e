"""The cache of what was learned of bundles, which a later start reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import msgspec
import pytest
import torch

from models.bundle import Bundle
from server.worker.backends import learned_cache
from server.worker.backends.learned_cache import MAX_FILES, Conditions, LearnedBundle, LearnedCache
from server.worker.backends.learner import Arm, LearnedRung
from server.worker.backends.loading import Loader
from server.worker.device_layout import Layout
from server.worker.stepwise import Stepwise, TypicalJob
from tests.support.bundles.vit import write_null, write_tiny_vit

LAYOUT = Layout(torch.device("cpu"), slots=1, threads=1, largest_batch=4)
RUNG = LearnedRung("bfloat16", "bfloat16", {1: "bfloat16"}, {1: {"bfloat16": 0.012}})
LEARNED = LearnedBundle(largest=4, seconds={1: 0.01, 2: 0.011, 4: 0.03}, rungs={"0,0": RUNG})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_vit(tmp_path / "bundles")


@pytest.fixture
def conditions(bundle: Bundle) -> Conditions:
    return Conditions.from_spec(bundle.spec, LAYOUT, "auto")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def the_file(folder: Path) -> Path:
    [path] = (folder / "learned").iterdir()
    return path


def test_a_later_start_finds_what_was_stored(folder: Path, conditions: Conditions) -> None:
    LearnedCache(folder).store(conditions, LEARNED)
    assert LearnedCache(folder).find(conditions) == LEARNED


def test_a_ladder_of_hundreds_of_rungs_is_found_again(folder: Path, conditions: Conditions) -> None:
    arms: dict[Arm, float] = {"eager": 1 / 77, "fused": 1 / 78, "onnx": 1 / 79}
    rung = LearnedRung("float32", "fused", dict.fromkeys(range(1, 7), "fused"), dict.fromkeys(range(1, 7), arms))
    learned = LearnedBundle(1, {1: 0.01}, {",".join(map(str, (13,) * 23 + (number,))): rung for number in range(300)})
    LearnedCache(folder).store(conditions, learned)
    assert LearnedCache(folder).find(conditions) == learned


def test_batches_are_sized_by_what_was_stored(folder: Path, bundle: Bundle, conditions: Conditions) -> None:
    LearnedCache(folder).store(conditions, LEARNED)
    ready = Loader(LAYOUT, "auto", LearnedCache(folder)).load(bundle)
    assert (ready.steps.best, ready.steps.seconds) == (2, LEARNED.seconds)


def test_a_machine_may_have_onnx_runtime_for_gpus_alone(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "onnxruntime":
            raise PackageNotFoundError(package)
        return "1.20.0"

    monkeypatch.setattr(learned_cache, "version", version)
    assert Conditions.from_spec(bundle.spec, LAYOUT, "auto").onnxruntime == "1.20.0"


@pytest.mark.parametrize(
    "changed",
    [{"torch": "0.1"}, {"cpu": "another"}, {"flags": ["avx9"]}, {"bundle": "0" * 64}, {"threads": 7}],
    ids=lambda changed: next(iter(changed)),
)
def test_other_conditions_are_learned_again(folder: Path, conditions: Conditions, changed: dict[str, object]) -> None:
    LearnedCache(folder).store(conditions, LEARNED)
    assert LearnedCache(folder).find(msgspec.structs.replace(conditions, **changed)) is None


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
        lambda content: content.replace(b'"v":4', b'"v":5'),
        lambda content: json.dumps({**json.loads(content), "conditions": {**json.loads(content)["conditions"], "cpus": 999}}).encode(),
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_and_replaced(
    folder: Path, bundle: Bundle, conditions: Conditions, damage: Callable[[bytes], bytes]
) -> None:
    LearnedCache(folder).store(conditions, LEARNED)
    content = the_file(folder).read_bytes()
    the_file(folder).write_bytes(damage(content))
    assert damage(content) != content
    assert LearnedCache(folder).find(conditions) is None
    assert Loader(LAYOUT, "auto", LearnedCache(folder)).load(bundle).backends is not None, "it serves all the same"
    LearnedCache(folder).store(conditions, LEARNED)
    assert LearnedCache(folder).find(conditions) == LEARNED


def test_unwritable_folder_only_means_learning_again(tmp_path: Path, bundle: Bundle, conditions: Conditions) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = LearnedCache(tmp_path / "cache")
    cache.store(conditions, LEARNED)
    assert cache.find(conditions) is None
    assert Loader(LAYOUT, "float32", cache).load(bundle).number_format(1) == ("float32", 0.0)
    LearnedCache(None).store(conditions, LEARNED)


def test_the_files_do_not_pile_up_and_those_in_use_stay(folder: Path, conditions: Conditions) -> None:
    cache = LearnedCache(folder)
    cache.store(conditions, LEARNED)
    for threads in range(2, MAX_FILES + 1):
        cache.store(msgspec.structs.replace(conditions, threads=threads), LEARNED)
    for path in (folder / "learned").iterdir():
        os.utime(path, (1, 1))
    assert cache.find(conditions) == LEARNED
    for threads in range(1000, 1000 + MAX_FILES - 1):
        cache.store(msgspec.structs.replace(conditions, threads=threads), LEARNED)
    assert len(list((folder / "learned").iterdir())) == MAX_FILES
    assert cache.find(conditions) == LEARNED


def test_a_job_of_several_steps_starts_as_it_was_seen_before(tmp_path: Path, folder: Path) -> None:
    slow = write_null(tmp_path / "slow", milliseconds=3_600_000, steps=[3])
    stored = LearnedBundle(4, {1: 3000.0}, typical_job=TypicalJob(cost=2.0, total=3, nbytes=5, start_seconds=1.0))
    LearnedCache(folder).store(Conditions.from_spec(slow.spec, LAYOUT, "auto"), stored)
    ready = Loader(LAYOUT, "auto", LearnedCache(folder)).load(slow)
    assert isinstance(ready.executor, Stepwise) and ready.executor.typical_job == stored.typical_job
