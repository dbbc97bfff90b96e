"""Configurations of published checkpoints at their whole depth, with random weights: what is imported answers as the library does."""

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
from tests.hub.conftest import imported, noise, normalised, save
from tests.hub.test_timm import saved

pytestmark = pytest.mark.slow

MOST = 1e-4
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
class Published:
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
    "google/vit-base-patch16-224": Published("ViTForImageClassification", "ViTConfig", VIT, LABELS),
    "google/vit-base-patch16-224-in21k": Published("ViTModel", "ViTConfig", VIT, output=token),
    "google/vit-large-patch16-384": Published(
        "ViTForImageClassification", "ViTConfig", VIT | {"size": {"height": 384, "width": 384}}, LABELS | LARGE | {"image_size": 384}
    ),
    "facebook/deit-tiny-patch16-224": Published("ViTForImageClassification", "ViTConfig", DEIT, LABELS | TINY),
    "facebook/deit-base-distilled-patch16-224": Published("DeiTForImageClassificationWithTeacher", "DeiTConfig", DEIT, LABELS),
    "facebook/dinov2-small": Published("Dinov2Model", "Dinov2Config", DINOV2, SMALL | {"image_size": 518}, output=token),
    "facebook/dinov2-base-imagenet1k-1-layer": Published(
        "Dinov2ForImageClassification", "Dinov2Config", DINOV2, LABELS | {"image_size": 518}
    ),
    "openai/clip-vit-base-patch32": Published("CLIPVisionModel", "CLIPVisionConfig", CLIP, output=lambda answer: answer.pooler_output),
    "google/siglip-base-patch16-224": Published(
        "SiglipVisionModel",
        "SiglipVisionConfig",
        {"image_processor_type": "SiglipImageProcessor"},
        output=lambda answer: answer.pooler_output,
    ),
    "MCG-NJU/videomae-base-finetuned-kinetics": Published("VideoMAEForVideoClassification", "VideoMAEConfig", CLIPS, {"num_labels": 400}),
}


def answers(made: Bundle, pixels: np.ndarray) -> np.ndarray:
    model = load(made)
    if made.spec.clip is not None:
        with torch.inference_mode():
            return model.model(normalised(pixels, made.spec.image_preprocess).transpose(1, 2)).logits.numpy()
    found = model.forward({"pixels": pixels}, {})
    return found["logits"] if made.spec.task == "classify" else found["embedding"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_of_transformers_answers_alike(name: str, tmp_path: Path) -> None:
    published = PUBLISHED[name]
    model = published.model()
    made = imported(save(model, tmp_path / "model", published.processor))
    side = made.spec.image_preprocess.image_size
    pixels = noise(2, *([16] if made.spec.clip is not None else []), side, side)
    with torch.inference_mode():
        expected = published.output(model(normalised(pixels, made.spec.image_preprocess)))
    if made.spec.task == "embed":
        expected = nn.functional.normalize(expected, dim=-1)
    found = answers(made, pixels)
    assert np.abs(found - expected.numpy()).max() <= MOST
    assert (found.argsort(axis=1)[:, -5:] == expected.numpy().argsort(axis=1)[:, -5:]).all()


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "deit_base_distilled_patch16_224", "vit_small_patch14_dinov2"])
def test_a_network_of_timm_answers_alike(name: str, tmp_path: Path) -> None:
    whole = timm.create_model(name, pretrained=False)
    depth, side = len(whole.blocks), whole.patch_embed.img_size[0]
    network = saved(tmp_path / "model", name, classes=1000, depth=depth, img_size=side)
    made = imported(tmp_path / "model")
    pixels = noise(2, side, side)
    with torch.inference_mode():
        expected = network(normalised(pixels, made.spec.image_preprocess)).numpy()
    found = answers(made, pixels)
    assert np.abs(found - expected).max() <= MOST * max(1.0, float(np.abs(expected).max()))
    assert (found.argsort(axis=1)[:, -5:] == expected.argsort(axis=1)[:, -5:]).all()
