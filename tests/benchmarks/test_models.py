from __future__ import annotations

import pytest
import torch

from benchmarks.models import LIKE_VIT_B, measure, table
from models.registry import architectures
from models.systems.diffmae.model import DiffMAEConfig
from models.systems.mcc.model import MCCConfig
from models.systems.mcc.queries import QUERIES
from models.systems.published_sizes import sizes
from models.systems.vit.model import ViTConfig

TINY_VIT = ViTConfig(image_size=32, patch_size=8, classes=10, width=32, depth=2, heads=2)


def test_all_systems_with_a_size_of_their_own_are_measured() -> None:
    assert architectures().keys() - {sizes()[name].architecture for name in LIKE_VIT_B} == {
        "actions",
        "lite_depth",
        "mcc_photograph",
        "null",
        "onnx",
        "onnx_depth",
        "onnx_inpaint",
        "movenet",
        "phalp_pose",
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_work_rate_and_share_of_a_pass_belong_together(dtype: torch.dtype) -> None:
    (result,) = measure("tiny", "vit", TINY_VIT, dtype, batch=3, passes=2)
    block = 17 * 12 * 32 * 32 + 2 * 17 * 17 * 32
    assert result.flops == 3 * 2 * (16 * 192 * 32 + 2 * block + 32 * 10)
    assert (result.samples, len(result.seconds)) == (3, 2)
    assert result.share == pytest.approx(result.rate * result.flops / result.samples / result.peak)
    assert table([result]).row_count == 1


def test_what_is_repeated_for_one_input_is_measured_alone() -> None:
    diffmae = DiffMAEConfig(
        image_size=(32, 32), patch_size=8, width=32, depth=2, heads=2, decoder_width=32, decoder_depth=2, decoder_heads=2
    )
    sample, step = measure("diffmae", "diffmae", diffmae, torch.float32, batch=1, passes=1)
    assert (sample.unit, step.unit) == ("sample", "step")
    assert step.flops < sample.flops
    mcc = MCCConfig(image_size=16, patch_size=8, width=24, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2)
    scene, queries = measure("mcc", "mcc", mcc, torch.float32, batch=1, passes=1)
    assert (scene.unit, scene.samples, queries.unit, queries.samples) == ("scene", 1, "query", QUERIES)
