"""DiffMAE's replay follows what a case says of itself, also where it says more, or less, than the recorded ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.__main__ import main
from tests.golden.case import read_recording, write_recording

HERE = Path(__file__).parent / "diffmae"
DDPM = tuple(f"{request}.ddpm10.{name}" for request in "ab" for name in ("patches", "composite", "x0_first"))


def rewritten(
    case: str,
    folder: Path,
    *,
    description: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
) -> str:
    """Copy a recorded case with other entries in its description and config, and without some arrays. An entry of None is removed."""
    folder.mkdir()
    content, arrays = read_recording(HERE / case)
    for entries, changes in ((content, description or {}), (content["config"], config or {})):
        entries.update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del entries[key]
    write_recording(folder, content, {name: value for name, value in arrays.items() if not name.endswith(without)})
    if (HERE / case / "checkpoint.pth").exists():
        (folder / "checkpoint.pth").symlink_to(HERE / case / "checkpoint.pth")
    return str(folder)


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("train_cross_self", {"description": {"paper": "section 3"}, "config": {"comment": "random weights"}}),
        ("train_cross_self", {"config": {"schedule": None, "norm_pix": None, "prediction": None, "connection": None, "time_embed": None}}),
        ("train_cross_self", {"config": {"schedule": {"kind": "linear"}, "video": False, "num_frames": 4}}),
        ("train_cross_self", {"description": {"mask_ratio": None}, "without": ("ids_keep", "ids_mask")}),
        ("train_cross_self", {"description": {"mask_ratio": None}, "without": ("mask_noise",)}),
        ("train_video_cross", {"config": {"video": None}}),
        ("sample_cross_self", {"description": {"seed": 1}, "without": ("composite", "x0_first")}),
        ("schedule", {"description": {"mask_ratio": 0.5}, "without": ("x_t", "in.x0", "in.eps", "in.t")}),
    ],
)
def test_a_case_may_say_more_or_less_than_is_needed(case: str, changes: dict[str, Any], tmp_path: Path) -> None:
    assert main([rewritten(case, tmp_path / "renamed", **changes)]) == 0


@pytest.mark.parametrize(
    ("case", "config"),
    [
        ("train_cross_self", {"connection": "last"}),
        ("train_cross_self", {"norm_pix": True}),
        ("train_cross_self", {"prediction": "eps"}),
        ("train_cross_self", {"schedule": {"kind": "cosine"}}),
        ("sample_cross_self", {"schedule": {"rho": 1.0}}),
        ("sample_cross_self", {"schedule": {"rho_mode": "alpha_bar"}}),
        ("sample_cross_self", {"prediction": "eps"}),
    ],
)
def test_what_a_config_says_counts(case: str, config: dict[str, Any], tmp_path: Path) -> None:
    assert main([rewritten(case, tmp_path / "renamed", config=config)]) == 1


@pytest.mark.parametrize(
    "run", [{"eta": 0.5}, {"clip": False}, {"spacing": "logsnr"}, {"method": "ddpm"}, {"method": "onestep"}, {"K": 4}], ids=str
)
def test_what_a_run_says_counts(run: dict[str, Any], tmp_path: Path) -> None:
    usual = {"K": 5, "method": "ddim", "eta": 0.0, "clip": True}
    for described, code in ((usual, 0), ({"K": 5, "method": "ddim"}, 0), (usual | run, 1)):
        folder = rewritten(
            "sample_cross_self", tmp_path / str(code + len(described)), description={"runs": {"ddim5": described}}, without=DDPM
        )
        assert main([folder]) == code


def test_times_are_those_of_the_schedules_that_a_case_has(tmp_path: Path) -> None:
    folder = tmp_path / "short"
    folder.mkdir()
    schedule = {"kind": "linear", "T": 100, "rho": 0.8, "rho_mode": "beta", "beta_start": 1e-4, "beta_end": 0.02}
    content = {"system": "diffmae", "config": {"short": schedule}, "atol": 0.0, "rtol": 0.0}
    write_recording(folder, content, {"out.timesteps_K7": torch.tensor([13, 27, 41, 56, 70, 84, 99])})
    assert main([str(folder)]) == 0
