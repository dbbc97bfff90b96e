"""Restarts of runs that were killed, changed or starved."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from traceback import StackSummary
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException

from tests.training import tiny_recipe
from training import cli
from training.errors import TrainingError, disk_is_full
from training.fingerprint import require_same
from training.phase_runner import WEIGHTS
from training.run_logger import LOG, read_log

PHASE = "colours-0.1/pretrain"


def run(recipe: Path, runs: Path, *changes: str, phase: str = "pretrain") -> int:
    """Train in this process. Return the exit code."""
    return cli.main([str(recipe), *changes, "--phase", phase, "--runs", str(runs), "--no-tensorboard"])


@pytest.fixture
def recipe(colours: Path, tmp_path: Path) -> Path:
    return tiny_recipe.write(tiny_recipe.recipe(colours), tmp_path / "colours.yaml")


def test_killed_run_resumes_to_equal_losses_and_weights(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tiny_recipe.recipe(colours)
    content["phases"] = content["phases"][1:]
    content["phases"][0].pop("start")
    content["phases"][0]["model"]["config"]["drop_path"] = 0.2
    content["phases"][0]["loop"] = {
        "epochs": 8,
        "batch_size": 8,
        "micro_batch": 4,
        "ema": 0.9,
        "clip_norm": 1.0,
        "checkpoint_every": 7,
        "workers": 1,
    }
    file = tiny_recipe.write(content, tmp_path / "long.yaml")
    full, killed = tmp_path / "whole", tmp_path / "killed"
    victim = tiny_recipe.start(file, "--phase", "finetune", "--runs", killed)
    folder, limit = killed / "colours-0.1/finetune", time.monotonic() + 120
    while not list(folder.glob("step-*[0-9]")):
        assert victim.poll() is None and time.monotonic() < limit
        time.sleep(0.001)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait(30) == -signal.SIGKILL
    assert not (folder / WEIGHTS).exists()
    tiny_recipe.finish(tiny_recipe.start(file, "--phase", "finetune", "--runs", killed))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run(file, full, phase="finetune") == 0

    expected, got = read_log(full / "colours-0.1/finetune"), read_log(folder)
    assert len(expected) == 8 * 9
    assert got == expected
    before, after = load_file(full / "colours-0.1/finetune" / WEIGHTS), load_file(folder / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_budget_stops_a_run_and_the_same_command_ends_it(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, tmp_path / "whole") == 0
    assert run(recipe, tmp_path / "halves", "phases.0.loop.max_steps=7") == 0
    assert "stopped in step 7 of phase pretrain" in capsys.readouterr().err
    assert len(read_log(tmp_path / "halves" / PHASE)) == 7
    assert run(recipe, tmp_path / "halves") == 0
    assert capsys.readouterr().err.startswith(f"pretrain goes on: step 7/18, from {tmp_path / 'halves' / PHASE}\n")
    assert read_log(tmp_path / "halves" / PHASE) == read_log(tmp_path / "whole" / PHASE)


def test_empty_list_of_later_version_changes_no_run(recipe: Path, tmp_path: Path) -> None:
    assert run(recipe, tmp_path, "phases.0.loop.max_steps=7") == 0
    file = tmp_path / PHASE / "run.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps(before | {"data.a list of an earlier version": []}))
    assert run(recipe, tmp_path) == 0


def test_a_file_that_moved_since_changes_no_run(tmp_path: Path) -> None:
    before = {"data.words.tokenizer": "training/recipes/words-vocabulary.json"}
    require_same(tmp_path, before, {"data.words.tokenizer": "starters/recipes/words-vocabulary.json"})
    with pytest.raises(TrainingError, match=r"data.words.tokenizer was training/recipes/words-vocabulary.json and is mine.json"):
        require_same(tmp_path, before, {"data.words.tokenizer": "mine.json"})


def test_a_time_budget_stops_a_run_with_a_checkpoint(recipe: Path, tmp_path: Path) -> None:
    assert run(recipe, tmp_path, "phases.0.loop.max_minutes=0.00001") == 0
    assert [path.name for path in (tmp_path / PHASE).glob("step-*")] == ["step-1"]


def test_sigterm_saves_after_the_step_that_is_running(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def terminate() -> None:
        while not read_log(tmp_path / PHASE):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    assert run(recipe, tmp_path, "phases.0.loop.epochs=10000", "phases.0.loop.log_every=1") == 128 + signal.SIGTERM
    assert "stopped in step" in capsys.readouterr().err
    [checkpoint] = (tmp_path / PHASE).glob("step-*")
    assert read_log(tmp_path / PHASE)[-1]["step"] == int(checkpoint.name.removeprefix("step-"))


def test_sigterm_to_every_process_of_a_run_saves_too(recipe: Path, tmp_path: Path) -> None:
    """torchrun and clusters send it so: data workers get the signal as well."""
    endless = ("phases.0.loop.epochs=10000", "phases.0.loop.log_every=1", "phases.0.loop.workers=1")
    process = tiny_recipe.start(recipe, *endless, "--phase", "pretrain", "--runs", tmp_path, leads=True)
    limit = time.monotonic() + 120
    while not read_log(tmp_path / PHASE):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, complained = process.communicate(60)
    assert process.returncode == 128 + signal.SIGTERM and "stopped in step" in complained, complained
    assert len(list((tmp_path / PHASE).glob("step-*"))) == 1


def test_a_finished_run_is_only_loaded(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, tmp_path) == 0
    weights, log = tmp_path / PHASE / WEIGHTS, read_log(tmp_path / PHASE)
    before = load_file(weights)
    capsys.readouterr()
    assert run(recipe, tmp_path) == 0
    assert "pretrain is done: step 18/18" in capsys.readouterr().err
    assert read_log(tmp_path / PHASE) == log
    assert all(torch.equal(value, before[name]) for name, value in load_file(weights).items())


def relabel(content: dict[str, Any], folder: Path) -> None:
    tiny_recipe.draw(folder, 24)
    (folder / "red").rename(folder / "rouge")
    content["data"]["path"] = str(folder)


def other_images(content: dict[str, Any], folder: Path) -> None:
    content["data"]["path"] = str(tiny_recipe.draw(folder, 24, seed=1))


def other_start(content: dict[str, Any], folder: Path) -> None:
    content["phases"][1]["start"] = None


CHANGES: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "model.drop_path was 0.0 and is 0.1": lambda content, _: content["phases"][1]["model"]["config"].update(drop_path=0.1),
    "content of the data.listing was": other_images,
    "starting weights (SHA-256) was": other_start,
    "labels was ['blue', 'green', 'red'] and is ['blue', 'green', 'rouge']": relabel,
    "preprocess.mean was [0.5, 0.5, 0.5] and is [0.4, 0.5, 0.5]": lambda content, _: content["preprocess"].update(mean=[0.4, 0.5, 0.5]),
    "augment.flip was True and is False": lambda content, _: content["augment"].update(flip=False),
    "objective.label_smoothing was 0.0 and is 0.1": lambda content, _: content["phases"][1]["objective"].update(label_smoothing=0.1),
    "schedule.warmup was 0.5 and is 1.0": lambda content, _: content["phases"][1]["schedule"].update(warmup=1.0),
    "optimiser.lr was 0.01 and is 0.02": lambda content, _: content["phases"][1]["optimiser"].update(lr=0.02),
    "seed was 3 and is 4": lambda content, _: content.update(seed=4),
}


@pytest.fixture(scope="module")
def begun(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of which both phases are under way."""
    folder = tmp_path_factory.mktemp("begun")
    file = tiny_recipe.write(tiny_recipe.recipe(colours), folder / "colours.yaml")
    assert run(file, folder, phase="pretrain") == 0
    assert run(file, folder, "phases.1.loop.max_steps=2", phase="finetune") == 0
    return folder


@pytest.mark.parametrize("message", CHANGES)
def test_a_run_is_not_continued_after_a_change_and_says_which(
    begun: Path, colours: Path, tmp_path: Path, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = tiny_recipe.recipe(colours)
    CHANGES[message](content, tmp_path / "data")
    changed = tiny_recipe.write(content, tmp_path / "changed.yaml")
    assert run(changed, begun, phase="finetune") == 2
    assert message in capsys.readouterr().err


def test_a_loss_that_is_no_number_is_not_saved(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exploding = ("phases.0.optimiser.lr=1e30", "phases.0.schedule.warmup=0", "phases.0.loop.checkpoint_every=1")
    assert run(recipe, tmp_path, *exploding) == 2
    assert "Not saved: lower optimiser.lr" in capsys.readouterr().err
    [checkpoint] = (tmp_path / PHASE).glob("step-*")
    assert read_log(tmp_path / PHASE)[-1]["step"] == int(checkpoint.name.removeprefix("step-"))


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(recipe, tmp_path, "phases.0.loop.max_steps=3") == 0

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(FileSystemWriter, "write_data", full)
        assert run(recipe, tmp_path, "phases.0.loop.max_steps=6") == 2
    assert "disk full, step 6 could not be saved. The checkpoint of step 3 is kept" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / PHASE).glob("step-*")] == ["step-3"]
    assert run(recipe, tmp_path) == 0


def test_a_full_disk_is_known_behind_what_pytorch_says_of_it() -> None:
    with pytest.raises(RuntimeError) as raised:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")  # noqa: B904
    assert disk_is_full(CheckpointException("", {0: (raised.value, StackSummary())}))
    assert not disk_is_full(CheckpointException("", {0: (RuntimeError("unexpected pos"), StackSummary())}))


def damaged_checkpoint(folder: Path) -> Path:
    [part] = folder.glob("step-3/*.distcp")
    part.write_bytes(part.read_bytes()[:1000])
    return folder / "step-3"


def empty_metadata(folder: Path) -> Path:
    (folder / "step-3/.metadata").write_bytes(b"")
    return folder / "step-3"


def other_metadata(folder: Path) -> Path:
    metadata = folder / "step-3/.metadata"
    content = bytearray(metadata.read_bytes())
    content[30] ^= 0xFF  # in a name: no UTF-8
    metadata.write_bytes(content)
    return folder / "step-3"


def empty_run(folder: Path) -> Path:
    (folder / "run.json").write_text("null")
    return folder / "run.json"


def cut_run(folder: Path) -> Path:
    file = folder / "run.json"
    file.write_text(file.read_text()[:20])
    return file


@pytest.mark.parametrize("damage", [damaged_checkpoint, empty_metadata, other_metadata, cut_run, empty_run])
def test_a_damaged_checkpoint_is_named(
    damage: Callable[[Path], Path], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(recipe, tmp_path, "phases.0.loop.max_steps=3") == 0
    file = damage(tmp_path / PHASE)
    capsys.readouterr()
    assert run(recipe, tmp_path) == 2
    output = capsys.readouterr().err
    assert output.startswith((f"{file}: damaged (", f"{file}: cannot be read (")) and output.count("\n") == 1


@pytest.mark.parametrize("content", [b"", None])
def test_damaged_weights_of_a_finished_phase_are_named(
    content: bytes | None, begun: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(begun / PHASE, tmp_path / PHASE)
    file = tmp_path / PHASE / WEIGHTS
    file.write_bytes(file.read_bytes()[:-9] if content is None else content)
    assert run(tiny_recipe.write(tiny_recipe.recipe(colours), tmp_path / "colours.yaml"), tmp_path, phase="finetune") == 2
    assert capsys.readouterr().err.startswith(f"start: {file} cannot be read (")


def test_a_disk_too_full_for_the_log_is_reported(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / PHASE).mkdir(parents=True)
    (tmp_path / PHASE / LOG).symlink_to("/dev/full")
    assert run(recipe, tmp_path, "phases.0.loop.max_steps=3") == 2
    assert capsys.readouterr().err.endswith("make room and start the same command again, which goes on from the last checkpoint\n")
