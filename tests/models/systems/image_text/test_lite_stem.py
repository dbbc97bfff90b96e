"""Patches that the first stages of EfficientNet-Lite0 see: in a pair, in a classifier made of it, and frozen in part."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.bundle import BundleSpec
from models.bundle_schema import Preprocess
from models.layers.efficientnet_lite import EfficientNetLiteEncoder, LitePatches
from models.merge_schedule import MergeSchedule
from models.systems.image_text.flip import FLIP, FLIPConfig
from models.systems.onnx.export import export
from models.systems.vit.model import Stem, ViT, ViTConfig
from models.systems.vit.onnx_graph import classifier_graph
from tests.support.bundles.vit import UNSEALED, seal

CONFIG = FLIPConfig(
    image_size=64,
    patch_size=16,
    stem=Stem.LITE,
    width=24,
    depth=2,
    heads=3,
    text_width=16,
    text_depth=1,
    text_heads=2,
    text_hidden=32,
    vocabulary=40,
    text_length=6,
    joint_width=12,
)


def make(config: FLIPConfig = CONFIG) -> FLIP:
    torch.manual_seed(0)
    return FLIP(config).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_a_patch_is_what_the_fifth_stage_sees_there() -> None:
    patches, encoder = LitePatches(7).eval(), EfficientNetLiteEncoder().eval()
    encoder.load_state_dict(patches.encoder.state_dict(), strict=False)
    with torch.inference_mode():
        tokens, seen = patches(images()), encoder(images())[4]
        expected = torch.einsum("bchw,oc->bhwo", seen, patches.proj.weight[:, :, 0, 0]) + patches.proj.bias
    assert tokens.shape == (2, 16, 7)
    torch.testing.assert_close(tokens, expected.flatten(1, 2), atol=1e-4, rtol=1e-4)


def test_tokens_merge_and_masked_patches_are_left_out() -> None:
    model = make()
    with torch.inference_mode():
        assert model.vision(images(), merge=MergeSchedule.constant(3)).tokens_out == 17 - 6
        assert model.vision(images(), visible=torch.arange(8).expand(2, -1)).tokens_in == 9
        noise = torch.rand(2, 16)
        retained = model.encode_images(images(), noise=noise)
        assert not torch.allclose(retained, model.encode_images(images()))


@pytest.mark.parametrize("stages", [0, 3, 5])
def test_freezing_changes_what_learns_and_not_what_is_seen(stages: int) -> None:
    model = make()
    with torch.no_grad():
        before = model.encode_images(images())
    patches = model.vision.patch_embed
    assert isinstance(patches, LitePatches)
    patches.freeze(stages)
    model.train()
    after = model.encode_images(images())
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    after.sum().backward()
    learns = [stage for stage in range(5) if any(parameter.grad is not None for parameter in patches.encoder.stages[stage].parameters())]
    assert learns == list(range(stages, 5))
    assert (patches.encoder.stem.weight.grad is None) == (stages > 0)


def test_in_bfloat16_the_stages_that_learn_stay_in_float32() -> None:
    model = make()
    patches = model.vision.patch_embed
    assert isinstance(patches, LitePatches)
    patches.freeze(3)
    types = {}
    for number, stage in enumerate(patches.encoder.stages):
        stage.register_forward_hook(lambda module, inputs, seen, number=number: types.update({number: seen.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        model.train().encode_images(images())
    assert types == {0: torch.bfloat16, 1: torch.bfloat16, 2: torch.bfloat16, 3: torch.float32, 4: torch.float32}


def test_other_patches_and_channels_are_refused() -> None:
    for changes in ({"patch_size": 8}, {"channels": 1}):
        with pytest.raises(ValueError, match="stem lite: for images of 3 channels and patches of 16 pixels"):
            ViTConfig(image_size=64, stem=Stem.LITE, **changes)  # type: ignore[arg-type]


def test_its_classifier_has_no_graph_and_says_so() -> None:
    model = ViT(replace(CONFIG.vision, classes=3))
    preprocess = Preprocess(image_size=64, short_side=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(ValueError, match="only vision transformers of plain patches"):
        classifier_graph(model, preprocess)


@pytest.mark.slow
def test_its_classifier_is_exported_for_batches_of_any_size(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    model = ViT(replace(CONFIG.vision, classes=3)).eval()
    preprocess = Preprocess(image_size=64, short_side=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    spec = BundleSpec(
        name="seeing",
        version="1",
        task="classify",
        architecture="vit",
        config=dataclasses.asdict(model.config),
        preprocess=preprocess,
        labels=["one", "two", "three"],
        license="CC0-1.0",
        weights=UNSEALED,
    )
    visible = list(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8))
    export(seal(tmp_path, spec, model.state_dict()), tmp_path / "seeing.onnx", pixels=visible)
    with torch.inference_mode():
        expected = model(images(5)).logits
    [logits] = onnxruntime.InferenceSession(tmp_path / "seeing.onnx").run(None, {"pixels": images(5).numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)
