"""Configurations of published checkpoints at full depth with random weights: imported models answer as the library does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from models.bundle import Bundle
from models.loading import load
from tests.hub.conftest import import_folder, noise, normalise, save
from tests.hub.test_timm import save_network

pytestmark = pytest.mark.slow

MAX_DIFFERENCE = 1e-4
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
LABELS = {"num_labels": 1000}
VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}
DEIT = {"image_processor_type": "DeiTImageProcessor"} | IMAGENET
DINOV2 = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}} | IMAGENET
CLIP = {"image_processor_type": "CLIPImageProcessor"}
CLIPS = {"image_processor_type": "VideoMAEImageProcessor"} | IMAGENET
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
TINY = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
SMALL = {"hidden_size": 384, "num_attention_heads": 6}


@dataclass(frozen=True)
class Configuration:
    kind: str
    config: str
    processor: dict[str, Any]
    fields: dict[str, Any] = field(default_factory=dict)
    output: Callable[[Any], Tensor] = lambda answer: answer.logits

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return getattr(transformers, self.kind)(getattr(transformers, self.config)(**self.fields)).eval()


def token(answer: Any) -> Tensor:
    return answer.last_hidden_state[:, 0]


PUBLISHED = {
    "google/vit-base-patch16-224": Configuration("ViTForImageClassification", "ViTConfig", VIT, LABELS),
    "google/vit-base-patch16-224-in21k": Configuration("ViTModel", "ViTConfig", VIT, output=token),
    "google/vit-large-patch16-384": Configuration(
        "ViTForImageClassification", "ViTConfig", VIT | {"size": {"height": 384, "width": 384}}, LABELS | LARGE | {"image_size": 384}
    ),
    "facebook/deit-tiny-patch16-224": Configuration("ViTForImageClassification", "ViTConfig", DEIT, LABELS | TINY),
    "facebook/deit-base-distilled-patch16-224": Configuration("DeiTForImageClassificationWithTeacher", "DeiTConfig", DEIT, LABELS),
    "facebook/dinov2-small": Configuration("Dinov2Model", "Dinov2Config", DINOV2, SMALL | {"image_size": 518}, output=token),
    "facebook/dinov2-base-imagenet1k-1-layer": Configuration(
        "Dinov2ForImageClassification", "Dinov2Config", DINOV2, LABELS | {"image_size": 518}
    ),
    "openai/clip-vit-base-patch32": Configuration("CLIPVisionModel", "CLIPVisionConfig", CLIP, output=lambda answer: answer.pooler_output),
    "google/siglip-base-patch16-224": Configuration(
        "SiglipVisionModel",
        "SiglipVisionConfig",
        {"image_processor_type": "SiglipImageProcessor"},
        output=lambda answer: answer.pooler_output,
    ),
    "MCG-NJU/videomae-base-finetuned-kinetics": Configuration(
        "VideoMAEForVideoClassification", "VideoMAEConfig", CLIPS, {"num_labels": 400}
    ),
}


def answers(made: Bundle, pixels: np.ndarray) -> np.ndarray:
    model = load(made)
    if made.spec.clip is not None:
        with torch.inference_mode():
            return model.model(normalise(pixels, made.spec.image_preprocess).transpose(1, 2)).logits.numpy()
    found = model.forward({"pixels": pixels}, {})
    return found["logits"] if made.spec.task == "classify" else found["embedding"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_of_transformers_answers_alike(name: str, tmp_path: Path) -> None:
    configuration = PUBLISHED[name]
    model = configuration.model()
    made = import_folder(save(model, tmp_path / "model", configuration.processor))
    side = made.spec.image_preprocess.image_size
    pixels = noise(2, *([16] if made.spec.clip is not None else []), side, side)
    with torch.inference_mode():
        expected = configuration.output(model(normalise(pixels, made.spec.image_preprocess)))
    if made.spec.task == "embed":
        expected = nn.functional.normalize(expected, dim=-1)
    found = answers(made, pixels)
    assert np.abs(found - expected.numpy()).max() <= MAX_DIFFERENCE
    assert (found.argsort(axis=1)[:, -5:] == expected.numpy().argsort(axis=1)[:, -5:]).all()


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "deit_base_distilled_patch16_224", "vit_small_patch14_dinov2"])
def test_a_network_of_timm_answers_alike(name: str, tmp_path: Path) -> None:
    network = timm.create_model(name, pretrained=False)
    depth, side = len(network.blocks), network.patch_embed.img_size[0]
    network = save_network(tmp_path / "model", name, classes=1000, depth=depth, img_size=side)
    bundle = import_folder(tmp_path / "model")
    pixels = noise(2, side, side)
    with torch.inference_mode():
        expected = network(normalise(pixels, bundle.spec.image_preprocess)).numpy()
    found = answers(bundle, pixels)
    assert np.abs(found - expected).max() <= MAX_DIFFERENCE * max(1.0, float(np.abs(expected).max()))
    assert (found.argsort(axis=1)[:, -5:] == expected.argsort(axis=1)[:, -5:]).all()
