"""Networks of timm as they lie on the hub answer here as they do in the library: random weights, equal pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from models.checkpoints import CheckpointError
from models.loading import load
from tests.hub.conftest import change, import_folder, noise, normalise, randomise

MAX_DIFFERENCE = 1e-4
NETWORKS = {
    "vit_tiny_patch16_224": {},
    "deit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "vit_small_patch14_dinov2": {"img_size": 42},
    "vit_base_patch32_clip_224": {"embed_dim": 64, "num_heads": 1},
    "vit_base_patch32_clip_quickgelu_224": {"embed_dim": 64, "num_heads": 1},
}


def save_network(folder: Path, name: str, classes: int = 3, **changes: Any) -> nn.Module:
    """Save a network of two blocks in the layout in which timm pushes it to the hub."""
    network = timm.create_model(name, **{"num_classes": classes, "depth": 2, "img_size": 64} | changes)
    folder.mkdir()
    save_file(randomise(network).state_dict(), folder / "model.safetensors")
    cfg = {"crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": classes}
    content = {"architecture": name, "num_classes": classes, "global_pool": "token", "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(content))
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_answers_as_in_the_library_and_merges(name: str, tmp_path: Path) -> None:
    network = save_network(tmp_path / "model", name, **NETWORKS[name])
    made = import_folder(tmp_path / "model")
    pixels = noise(3, made.spec.image_preprocess.image_size, made.spec.image_preprocess.image_size)
    with torch.inference_mode():
        expected = network(normalise(pixels, made.spec.image_preprocess)).numpy()
    model = load(made)
    assert np.abs(model.forward({"pixels": pixels}, {})["logits"] - expected).max() <= MAX_DIFFERENCE
    assert expected.std(axis=0).min() > 0.01
    merged = model.forward({"pixels": pixels}, {"merge": [1, 1]})
    assert (merged["tokens"][:, 0] - merged["tokens"][:, 1]).tolist() == [2, 2, 2]


def test_a_network_without_a_head_is_an_encoder(tmp_path: Path) -> None:
    network = save_network(tmp_path / "model", "vit_tiny_patch16_224", classes=0)
    change(tmp_path / "model/config.json", num_classes=0, pretrained_cfg={"tag": "mae", "num_classes": 0, "crop_pct": 1.0})
    made, pixels = import_folder(tmp_path / "model"), noise(3, 64, 64)
    with torch.inference_mode():
        expected = nn.functional.normalize(network(normalise(pixels, made.spec.image_preprocess)), dim=-1).numpy()
    assert (made.spec.task, made.spec.config["proportional_attention"]) == ("embed", False)
    assert np.abs(load(made).forward({"pixels": pixels}, {})["embedding"] - expected).max() <= MAX_DIFFERENCE


@pytest.mark.parametrize(
    ("tag", "classes", "task"), [("openai", 512, "embed"), ("openai_ft_in1k", 512, "classify"), ("openai", 3, "classify")]
)
def test_a_projection_to_the_space_of_texts_is_no_classifier(tag: str, classes: int, task: str, tmp_path: Path) -> None:
    network = save_network(tmp_path / "model", "vit_base_patch32_clip_224", classes=classes, embed_dim=64, num_heads=1)
    change(tmp_path / "model/config.json", pretrained_cfg={"tag": tag, "num_classes": classes, "crop_pct": 1.0})
    made, pixels = import_folder(tmp_path / "model"), noise(3, 64, 64)
    assert made.spec.task == task
    if task == "embed":
        with torch.inference_mode():
            states = network.forward_features(normalise(pixels, made.spec.image_preprocess))
        expected = nn.functional.normalize(states[:, 0], dim=-1).numpy()
        assert np.abs(load(made).forward({"pixels": pixels}, {})["embedding"] - expected).max() <= MAX_DIFFERENCE
        assert made.spec.provenance["left_out"] == ["head.bias", "head.weight"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"architecture": "vit_medium_patch16_gap_256"}, "architecture 'vit_medium_patch16_gap_256' is not read by its name"),
        ({"global_pool": "avg"}, "config.json: global_pool 'avg' cannot be computed here; accepted is 'token'"),
    ],
)
def test_a_network_that_cannot_be_kept_is_refused_by_its_field(fields: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    save_network(tmp_path / "model", "vit_tiny_patch16_224")
    change(tmp_path / "model/config.json", **fields)
    with pytest.raises(CheckpointError) as refused:
        import_folder(tmp_path / "model")
    assert sentence in str(refused.value) and str(refused.value).endswith("`opsin import FILE.onnx --as classify`")
