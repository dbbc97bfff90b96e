"""The golden runner passes every recorded case, and notices what is wrong with one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.__main__ import main
from tests.golden.case import Replay, find_cases, read_case, read_recording, write_recording
from tests.golden.compare import compare

HERE = Path(__file__).parent
CASES = list(find_cases(HERE))


@pytest.mark.parametrize("folder", CASES, ids=[f"{folder.parent.name}/{folder.name}" for folder in CASES])
def test_recorded_case_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0, capsys.readouterr().out


def test_the_command_prints_one_line_a_case(tmp_path: Path) -> None:
    shutil.copytree(HERE / "tome" / "matching", tmp_path / "elsewhere" / "renamed")
    command = [sys.executable, "-m", "tests.golden", str(tmp_path), str(HERE / "mae" / "pretrain_pixel")]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    assert [(line[0], line[-1]) for line in lines] == [("tome/renamed", "ok"), ("mae/pretrain_pixel", "ok")]
    assert all(0 <= float(line[1]) < 1e-4 and float(line[2]) >= 0 for line in lines)


def change_case(case: str, folder: Path, *, io: dict[str, Any] | None = None, json_change: dict[str, Any] | None = None) -> str:
    """Copy a case with other recorded values; a tensor of None is removed."""
    shutil.copytree(HERE / case, folder)
    content, tensors = read_recording(folder)
    for name, change in (io or {}).items():
        tensors[name] = change(tensors[name]) if name in tensors else change(torch.zeros(1))
    for key, change in (json_change or {}).items():
        content[key] = change(content.get(key))
    write_recording(folder, content, tensors)
    return str(folder)


def nudge(tensor: torch.Tensor) -> torch.Tensor:
    """Move one value by a little more than the tolerance of 1e-4."""
    flat = tensor.clone().flatten()
    flat[-1] += 3e-4 * (1 + flat[-1].abs())
    return flat.view(tensor.shape)


def shift_rate(schedule: dict[str, Any]) -> dict[str, Any]:
    return {**schedule, "epoch_to_lr": {**schedule["epoch_to_lr"], "27.5": schedule["epoch_to_lr"]["27.5"] * 1.01}}


def drop_parameter(groups: dict[str, Any]) -> dict[str, Any]:
    table = {decay: {name: row for name, row in rows.items() if name != "head.bias"} for decay, rows in groups["table"].items()}
    return {**groups, "table": table}


@pytest.mark.parametrize(
    ("case", "io", "json_change", "complaint"),
    [
        ("tome/vit_timm", {"out.r4_prop.logits": nudge}, None, "out.r4_prop.logits"),
        ("tome/vit_timm", {"out.r5_prop.logits": lambda t: t}, None, "out.r5_prop.logits  inf  inf  was not replayed"),
        ("tome/vit_timm", {"out.r4_prop.size": lambda t: t[:, 1:].contiguous()}, None, "has shape (2, 21, 1) for (2, 20, 1)"),
        ("mae/pretrain_pixel", {"out.pred": lambda t: torch.full_like(t, torch.nan)}, None, "out.pred"),
        ("mae/finetune_gap", None, {"lr_schedule": shift_rate}, "lr_schedule"),
        ("mae/finetune_gap", None, {"param_groups": drop_parameter}, "param_groups"),
        ("mae/finetune_gap", None, {"augmentation": lambda _: {"flip": 0.5}}, "augmentation  inf  inf  was not replayed"),
        ("tome/matching", None, {"schedules": lambda s: {**s, "[2, 3]": [[3, 2], "int"]}}, "schedules"),
        ("tome/vit_timm", None, {"config": lambda c: {**c, "num_heads": 5}}, "ValueError"),
    ],
)
def test_what_does_not_agree_fails(
    case: str, io: Any, json_change: Any, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([change_case(case, tmp_path / "case", io=io, json_change=json_change), str(HERE / "tome" / "matching")]) == 1
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.endswith("  FAIL")
    assert any(complaint in line for line in rest)
    assert [line for line in rest if line.endswith(" ok")] == [
        rest[-1]
    ]  # the next case is still run, and nothing else looks like it passed


def test_a_text_that_no_replay_knows_is_a_note(tmp_path: Path) -> None:
    assert main([change_case("tome/matching", tmp_path / "case", json_change={"produced_on": lambda _: "a laptop"})]) == 0


def test_a_system_without_a_replay_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([change_case("tome/matching", tmp_path / "case", json_change={"system": lambda _: "unheard_of"})]) == 1
    assert capsys.readouterr().out.rstrip() == "unheard_of/case  -  -  no replay for this system"


def test_folders_without_cases_do_not_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert main([str(tmp_path / "absent")]) == 2
    assert "absent: no such folder" in capsys.readouterr().err


def test_a_tolerance_can_be_overridden_for_some_outputs(tmp_path: Path) -> None:
    override = {"tolerance_overrides": lambda _: {"r4_*.logits": {"atol": 1.0}}}
    folder = change_case(
        "tome/vit_timm", tmp_path / "case", io={"out.r4_prop.logits": nudge, "out.big_prop.logits": nudge}, json_change=override
    )
    case = read_case(Path(folder))
    off = {name: value + 0.5 for name, value in case.outputs.items()}
    passed = {deviation.name for deviation in compare(case, Replay(off)) if deviation.problem is None}
    assert passed == {"out.r4_prop.logits", "out.r4_noprop.logits"}
