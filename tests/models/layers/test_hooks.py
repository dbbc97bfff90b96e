"""Sharding, checkpointing and compiling hang on a block's call: every block of every system is called, not reached into."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.flops import prepare_forward
from models.systems.mcc.model import MCC, MCCConfig
from models.systems.mvit.reversible import RevMViT, RevMViTConfig
from models.systems.vit.model import Pool, ViT, ViTConfig
from tests.golden.checks import RECORDED
from tests.models.test_compiled import load_recording


def count_calls(model: nn.Module) -> dict[str, int]:
    """Name → calls, of every block of every transformer in a model, from now on."""
    calls: dict[str, int] = {}

    def watch(name: str, block: nn.Module) -> None:
        calls[name] = 0
        block.register_forward_hook(lambda *_: calls.__setitem__(name, calls[name] + 1))

    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and "blocks" in name.rpartition(".")[2]:
            for number, block in enumerate(module):
                watch(f"{name}.{number}", block)
    assert calls
    return calls


@pytest.mark.parametrize("family", RECORDED)
def test_a_forward_pass_calls_every_block(family: str) -> None:
    torch.manual_seed(0)
    architecture, model = load_recording(family)
    calls = count_calls(model)
    with torch.inference_mode():
        prepare_forward(architecture, model, batch=2)()
    assert [name for name, count in calls.items() if not count] == []


TINY = ViTConfig(
    image_size=16, patch_size=8, classes=3, width=16, depth=3, heads=2, class_token=False, pool=Pool.NORM_MEAN, reversible=True
)
PYRAMID = RevMViTConfig(
    image_size=32,
    frames=4,
    classes=3,
    width=8,
    depth=4,
    width_growth=((1, 2.0),),
    head_growth=((1, 2.0),),
    transitions=(1,),
    q_strides=((1, 1, 2, 2),),
    kv_stride=(1, 2, 2),
)


@pytest.mark.parametrize(
    ("model", "pixels"),
    [(ViT(TINY), torch.randn(2, 3, 16, 16)), (RevMViT(PYRAMID), torch.randn(2, 3, 4, 32, 32))],
    ids=["Rev-ViT", "Rev-MViT"],
)
def test_reversible_trunk_calls_block_hooks_again_on_recompute(model: nn.Module, pixels: Tensor) -> None:
    calls = count_calls(model.train())
    loss = model(pixels).logits.square().sum()
    forward = dict(calls)
    loss.backward()
    assert all(forward.values())
    recomputed = [name for name in calls if calls[name] > forward[name]]
    assert recomputed == [name for name in calls if not isinstance(model, RevMViT) or not name.endswith(".1")]


def test_a_scene_and_its_queries_call_every_block_of_the_decoder() -> None:
    config = MCCConfig(
        image_size=16, patch_size=8, width=24, depth=1, heads=2, window=4, window_depth=2, window_heads=2, decoder_width=16, decoder_depth=2
    )
    model = MCC(config).eval()
    calls = count_calls(model)
    scene = model.cache_scene(model.encode(torch.rand(1, 3, 16, 16), torch.randn(1, 8, 8, 3)))
    assert all(calls.values())
    before = dict(calls)
    model.decode_queries(scene, torch.randn(1, 5, 3))
    assert {name for name in calls if calls[name] > before[name]} == {"decoder_blocks.0", "decoder_blocks.1"}
