"""MCC's replay follows what a case says of itself, also where it leaves out what is as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.__main__ import main
from tests.golden.case import read_case
from tests.golden.compare import compare_intermediates
from tests.golden.replays.mcc import replay
from tests.golden.test_goldens import change_case

HERE = Path(__file__).parent / "mcc"

AS_PUBLISHED = {
    "in_chans": 3,
    "mlp_ratio": 4.0,
    "xyz_num_heads": 12,
    "xyz_mlp_ratio": 2.0,
    "xyz_depth": 1,
    "xyz_window": 8,
    "norm_eps": 1e-6,
    "qkv_bias": True,
    "rgb_weight": 0.01,
    "occupancy_weight": 1.0,
    "shrink_threshold": 10.0,
    "co3d_world_size": 3.0,
    "semisphere_size": 6.0,
    "fg_mask_threshold": 0.5,
    "temperature": 0.1,
    "score_thresholds": [0.1, 0.2, 0.3, 0.4, 0.5],
}
NEEDLESS = {"regress_color", "seen_xyz_size", "max_queries_per_forward", "n_queries"}
"""Fields that the weights or the arrays determine, or without influence on the recording."""


CASES = ("co3d_demo", "co3d_forward", "co3d_train_step", "hypersim_forward")


@torch.no_grad()
@pytest.mark.parametrize(("case", "count"), list(zip(CASES, (4, 11, 6, 4), strict=True)))
def test_what_is_recorded_on_the_way_comes_out_too(case: str, count: int) -> None:
    """Tables as initialised, crops, labels, tokens, both encoders."""
    recorded = read_case(HERE / case)
    deviations = compare_intermediates(recorded, replay(recorded))
    assert [deviation for deviation in deviations if deviation.problem] == []
    assert len(deviations) == count


@pytest.mark.parametrize("case", CASES)
def test_a_case_may_record_fewer_or_more_settings(case: str, tmp_path: Path) -> None:
    def shorter(config: dict[str, Any]) -> dict[str, Any]:
        shortened = {key: value for key, value in config.items() if key not in NEEDLESS and (key, value) not in AS_PUBLISHED.items()}
        assert len(shortened) < len(config) - 12
        return {**shortened, "comment": "random weights", "input_size": 224}

    assert main([change_case(f"mcc/{case}", tmp_path / "renamed", json_change={"config": shorter})]) == 0


@pytest.mark.parametrize(
    ("case", "change", "output"),
    [
        ("co3d_forward", {"shrink_threshold": 5.0}, "pred"),
        ("co3d_forward", {"xyz_num_heads": 6}, "pred"),
        ("co3d_forward", {"norm_eps": 1e-2}, "pred"),
        ("co3d_forward", {"fg_mask_threshold": 0.9}, "pred"),
        ("co3d_forward", {"train_dist_threshold": 0.1}, "labels"),
        ("co3d_forward", {"rgb_weight": 0.02}, "loss"),
        ("co3d_forward", {"occupancy_weight": 2.0}, "loss"),
        ("co3d_train_step", {"drop_path": 0.5}, "pred"),
        ("co3d_train_step", {"use_hypersim": True}, "pred"),  # would not be shifted and turned
        ("co3d_train_step", {"mode": "eval"}, "pred"),
        ("co3d_demo", {"crop_margin": 20}, "occupancy_logits"),
        ("co3d_demo", {"demo_rgb_size": 40}, "occupancy_logits"),
        ("co3d_demo", {"granularity": 1.0}, "grid_xyz"),
        ("co3d_demo", {"temperature": 0.2}, "colors"),
        ("co3d_demo", {"score_thresholds": [0.1, 0.2, 0.3, 0.4, 0.45]}, "selected"),
        ("hypersim_forward", {"eval_granularity": 1.5}, "unseen_xyz"),
        ("hypersim_forward", {"semisphere_size": 4.0}, "unseen_xyz"),
        ("hypersim_forward", {"eval_score_threshold": 0.55}, "eval_f1_reference"),
        ("hypersim_forward", {"eval_dist_threshold": 0.5}, "eval_recall_full"),
        ("hypersim_forward", {"max_queries_per_forward": 30}, "loss_rgb"),  # a mean of means
    ],
)
def test_recorded_settings_take_effect(
    case: str, change: dict[str, Any], output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([change_case(f"mcc/{case}", tmp_path / "case", json_change={"config": lambda config: {**config, **change}})]) == 1
    failed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "outside" in line or "has shape" in line]
    assert f"out.{output}" in failed
