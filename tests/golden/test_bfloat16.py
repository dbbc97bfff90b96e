"""How far bfloat16 weights are from the recorded float32 answers: 3 % of a sample's logits or patches, as long as the same tokens merge.

Near ties are decided by rounding, so that now and then another pair merges; that is another answer, not a less exact one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoints import families, fit, read_checkpoint
from tests.golden.case import Case, read_case
from tests.golden.replays.mavil import load_audio_mae
from tests.golden.replays.tome import merge_schedule

HERE = Path(__file__).parent


def answers(case: Case, family: str, run: str, dtype: torch.dtype) -> tuple[Tensor, list[Tensor | None]]:
    """Logits, and which tokens had merged after every block."""
    options = case.config["runs"][run]
    settings = {"heads": case.config["num_heads"], "norm_eps": case.config["norm_eps"], "proportional_attention": options["prop_attn"]}
    if "num_frames" in case.config:
        settings["frames"] = case.config["num_frames"]
    model = fit(read_checkpoint(case.checkpoint), families()[family], settings).model().to(dtype)
    sources: list[Tensor | None] = []
    for block in model.get_submodule("blocks").children():
        block.register_forward_hook(lambda block, inputs, tokens: sources.append(tokens.source))
    pixels = case.inputs["video" if "video" in case.inputs else "img"].to(dtype)
    with torch.inference_mode():
        answer = model(pixels, merge=merge_schedule(options["r"], options["r_type"]), trace=True)
    return answer.logits.float(), sources


def merged_alike(one: list[Tensor | None], other: list[Tensor | None], sample: int) -> bool:
    return all(a is None or b is None or torch.equal(a[sample], b[sample]) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("name", "family"), [("vit_timm", "timm"), ("vit_mae_gap", "mae"), ("vit_swag", "swag"), ("vit_mae_st_composed", "mae_st")]
)
def test_bfloat16_stays_within_three_percent(name: str, family: str) -> None:
    case = read_case(HERE / "tome" / name)
    compared = total = 0
    for run in case.config["runs"]:
        recorded = case.outputs[f"{run}.logits"]
        _, float_sources = answers(case, family, run, torch.float32)
        logits, sources = answers(case, family, run, torch.bfloat16)
        for sample in range(len(recorded)):
            total += 1
            if merged_alike(float_sources, sources, sample):
                compared += 1
                assert (logits[sample] - recorded[sample]).norm() < 0.03 * recorded[sample].norm(), (run, sample)
    assert compared >= 0.75 * total


def test_windows_of_sound_stay_within_three_percent_in_bfloat16() -> None:
    case = read_case(HERE / "mavil" / "audio_mae_window_decoder")
    model = load_audio_mae(case).to(torch.bfloat16)
    with torch.inference_mode():
        answer = model(case.inputs["audio"].bfloat16(), case.inputs["noise"])
    recorded = case.outputs["pred"]
    errors = (answer.patches.float() - recorded).flatten(1).norm(dim=1)
    assert (errors < 0.03 * recorded.flatten(1).norm(dim=1)).all()
    assert torch.equal(answer.mask, case.outputs["mask"])
    torch.testing.assert_close(answer.loss.float(), case.outputs["loss_rec_audio"].squeeze(), rtol=0.03, atol=0)
