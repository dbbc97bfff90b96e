"""A bundle on disk becomes a model that runs, or is refused with a sentence."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models import bundle
from models.bundle import Bundle, BundleError, BundleSpec
from models.bundle_schema import FileDigest, Preprocess
from models.layers.forward import normalise
from models.loading import LoadedModel, load
from models.systems.null.steps import Null, NullConfig
from models.systems.vit.model import ViT, ViTConfig

CONFIG = ViTConfig(image_size=16, patch_size=4, classes=3, width=32, depth=3, heads=4)
PREPROCESS = Preprocess(image_size=16, short_side=18, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))


def make(root: Path, model: nn.Module, *, architecture: str = "vit", config: dict[str, Any] | None = None) -> Bundle:
    save_file(model.state_dict(), root / "weights")
    spec = BundleSpec(
        name="test",
        version="1",
        task="classify",
        architecture=architecture,
        config=asdict(CONFIG) if config is None else config,
        preprocess=PREPROCESS,
        labels=["a", "b", "c"],
        license="CC0-1.0",
        weights=FileDigest(sha256="0" * 64, bytes=0),
    )
    return bundle.write(root, spec, root / "weights")


@pytest.fixture
def vit() -> ViT:
    torch.manual_seed(0)
    return ViT(CONFIG).eval()


@pytest.fixture
def loaded(tmp_path: Path, vit: ViT) -> LoadedModel:
    return load(make(tmp_path, vit))


def pixels(batch: int = 2) -> dict[str, np.ndarray]:
    return {"pixels": np.random.default_rng(0).integers(0, 256, (batch, 16, 16, 3), dtype=np.uint8)}


def test_a_loaded_model_answers_as_the_one_that_was_saved(loaded: LoadedModel, vit: ViT) -> None:
    outputs = loaded.forward(pixels(), {})
    images = (torch.from_numpy(pixels()["pixels"]) / 255 - torch.tensor(PREPROCESS.mean)) / torch.tensor(PREPROCESS.std)
    torch.testing.assert_close(torch.from_numpy(outputs["logits"]), vit(images.permute(0, 3, 1, 2)).logits.detach())
    assert outputs["tokens"].dtype == np.int32
    assert outputs["tokens"].tolist() == [[17, 17], [17, 17]]
    assert (loaded.depth, loaded.protected_tokens) == (3, 1)


def test_the_merge_option_is_r_per_block(loaded: LoadedModel) -> None:
    assert loaded.forward(pixels(), {"merge": [2, 0, 3]})["tokens"].tolist() == [[17, 12], [17, 12]]


def test_trace_maps_patches_to_tokens_after_each_block(loaded: LoadedModel) -> None:
    outputs = loaded.forward(pixels(), {"merge": [2, 0, 3], "trace": True})
    assert outputs["grid"].tolist() == [[4, 4], [4, 4]]
    assert outputs["groups"].shape == (2, 3, 16)
    for layers in outputs["groups"].tolist():
        assert [sorted(set(layer)) for layer in layers] == [list(range(14)), list(range(14)), list(range(11))]
        first, second, third = layers
        assert first == second
        reserved = {group: {third[patch] for patch in range(16) if second[patch] == group} for group in second}
        assert all(len(into) == 1 for into in reserved.values())  # what was together stays together
    np.testing.assert_allclose(outputs["logits"], loaded.forward(pixels(), {"merge": [2, 0, 3]})["logits"], atol=1e-6)
    assert "groups" not in loaded.forward(pixels(), {"merge": [2, 0, 3]})


def test_a_trace_without_merging_leaves_every_patch_alone(loaded: LoadedModel) -> None:
    assert loaded.forward(pixels(1), {"trace": True})["groups"].tolist() == [[list(range(16))] * 3]


def test_answers_are_float32_at_every_precision(tmp_path: Path, vit: ViT, loaded: LoadedModel) -> None:
    half = load(bundle.read(tmp_path / "test" / "1"), dtype=torch.bfloat16).forward(pixels(), {"merge": [3]})
    full = loaded.forward(pixels(), {"merge": [3]})
    assert half["logits"].dtype == np.float32
    np.testing.assert_allclose(half["logits"], full["logits"], atol=0.02)


def test_a_sample_is_answered_the_same_in_any_batch(loaded: LoadedModel) -> None:
    many = loaded.forward(pixels(5), {"merge": [3, 3]})["logits"]
    alone = loaded.forward({"pixels": pixels(5)["pixels"][2:3]}, {"merge": [3, 3]})["logits"]
    np.testing.assert_allclose(alone[0], many[2], atol=1e-5)


def test_normalising_is_done_per_channel() -> None:
    white = normalise(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8), PREPROCESS, torch.float32)
    assert white.shape == (1, 3, 2, 2)
    torch.testing.assert_close(white[0, :, 0, 0], torch.tensor([0.9 / 0.5, 0.8 / 0.25, 0.7 / 0.2]))


def test_the_null_model_takes_its_time_and_answers_zeros(tmp_path: Path) -> None:
    null = load(make(tmp_path, Null(NullConfig()), architecture="null", config={"milliseconds": 1.0, "classes": 3, "tokens": 50}))
    outputs = null.forward(pixels(4), {})
    assert not outputs["logits"].any()
    assert outputs["logits"].shape == (4, 3)
    assert outputs["tokens"].tolist() == [[50, 50]] * 4
    assert (null.depth, null.protected_tokens) == (1, 0)


@pytest.mark.parametrize(
    ("architecture", "config", "sentence"),
    [
        ("resnet", {}, "architecture 'resnet' is unknown; known are vit"),
        ("video_mae", {"depth": 0}, r"does not fit architecture video_mae: missing: pos_embed\.spatial"),
        ("vit", {**asdict(CONFIG), "depth": 0}, "config: depth 0 is not a positive number of blocks"),
        ("vit", {"depht": 3}, "config: depht: unknown; the fields are .*depth"),
        ("vit", {"width": "three"}, "config: width: Input should be a valid integer"),
        ("vit", asdict(replace(CONFIG, depth=2)), r"model\.safetensors: does not fit architecture vit: unexpected: blocks\.2"),
        ("vit", asdict(replace(CONFIG, depth=4)), r"does not fit architecture vit: missing: blocks\.3"),
        ("vit", asdict(replace(CONFIG, classes=4)), r"of another shape: head\.weight \(3, 32\) for \(4, 32\)"),
    ],
)
def test_a_bundle_that_cannot_run_is_refused_with_a_sentence(
    architecture: str, config: dict[str, Any], sentence: str, tmp_path: Path, vit: ViT
) -> None:
    with pytest.raises(BundleError, match=sentence):
        load(make(tmp_path, vit, architecture=architecture, config=config))


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "c", "d"]])
def test_bundle_with_wrong_number_of_labels_is_refused(labels: list[str], tmp_path: Path, vit: ViT) -> None:
    made = make(tmp_path, vit)
    with pytest.raises(BundleError, match=f"{len(labels)} labels for a model of 3 classes"):
        load(bundle.replace_spec(made, made.spec.model_copy(update={"labels": labels})))


def test_images_of_wrong_size_are_refused_before_inference(tmp_path: Path, vit: ViT) -> None:
    made = make(tmp_path, vit)
    wide = PREPROCESS.model_copy(update={"image_size": 10**6, "short_side": 10**6})
    with pytest.raises(BundleError, match="images of 1000000 × 1000000 pixels for a model of 16 × 16"):
        load(bundle.replace_spec(made, made.spec.model_copy(update={"preprocess": wide})))


def test_a_classifier_without_classes_is_refused(tmp_path: Path) -> None:
    features = replace(CONFIG, classes=0)
    with pytest.raises(BundleError, match="3 labels for a model of 0 classes"):
        load(make(tmp_path, ViT(features), config=asdict(features)))


def test_damaged_weights_are_not_loaded(tmp_path: Path, vit: ViT) -> None:
    made = make(tmp_path, vit)
    data = bytearray(made.weights_path.read_bytes())
    data[-1] ^= 1
    made.weights_path.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        load(made)


def test_weights_that_are_not_numbers_are_not_loaded(tmp_path: Path, vit: ViT) -> None:
    """Prove it for all tasks: the answers of jobs of many steps are not looked at when a bundle is loaded."""
    with torch.no_grad():
        vit.blocks[1].attn.qkv.weight[0, 0] = torch.nan
    with pytest.raises(BundleError, match=r"weights that are not numbers \(NaN\): blocks.1.attn.qkv.weight"):
        load(make(tmp_path, vit))
