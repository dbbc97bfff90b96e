"""Models imported in the layout of transformers are served with the labels and scores of the library for the same photo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.hub.conftest import randomise, save
from tests.support.live_service import running
from tests.support.processes import opsin

PHOTO = sorted(Path("docs/pictures/flags").glob("*.png"))[0]
NAMES = ["cat", "dog", "bird", "fish", "horse"]
LABELS = ["red car", "a dog", "sofa"]
MAX_DIFFERENCE = 1e-3
"""Maximum difference of a score."""
DEIT = {
    "image_processor_type": "DeiTImageProcessor",
    "size": {"height": 40, "width": 40},
    "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


@pytest.fixture(scope="module")
def deit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.DeiTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(NAMES)),
    )
    return save(randomise(transformers.DeiTForImageClassificationWithTeacher(config)), tmp_path_factory.mktemp("deit"), DEIT)


@pytest.fixture(scope="module")
def url(deit: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("bundles")
    for folder, name in ((deit, "deit"), (clip, "clip")):
        ended = opsin("import", folder, "-o", root / name)
        assert (ended.returncode, ended.stderr) == (0, "")
    with running(root) as service:
        yield service.url


def predictions(url: str, route: str, **fields: object) -> list[dict[str, float | str]]:
    answer = httpx2.post(f"{url}/v1/{route}", files={"image": PHOTO.read_bytes()}, data=fields, timeout=60)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, float | str]] = answer.json()["results"][0]["predictions"]
    return found


def photo() -> Image.Image:
    with Image.open(PHOTO) as image:
        return image.convert("RGB")


def agree(found: list[dict[str, float | str]], names: list[str], scores: np.ndarray) -> None:
    order = (-scores).argsort()
    assert [one["label"] for one in found] == [names[index] for index in order]
    assert np.abs(np.array([one["score"] for one in found]) - scores[order]).max() <= MAX_DIFFERENCE


def test_labels_of_a_classifier(url: str, deit: Path) -> None:
    pixels = transformers.DeiTImageProcessorPil.from_pretrained(deit)(photo(), return_tensors="pt")
    with torch.inference_mode():
        logits = transformers.DeiTForImageClassificationWithTeacher.from_pretrained(deit).eval()(**pixels).logits
    agree(predictions(url, "classify", model="deit", top_k=5), NAMES, logits[0].softmax(dim=0).numpy())
    assert len(predictions(url, "classify", model="deit", top_k=2, merge=3)) == 2


def test_labels_of_a_request(url: str, clip: Path) -> None:
    model, tokenizer = transformers.CLIPModel.from_pretrained(clip).eval(), transformers.CLIPTokenizer.from_pretrained(clip)
    pixels = transformers.CLIPImageProcessorPil.from_pretrained(clip)(photo(), return_tensors="pt")
    with torch.inference_mode():
        logits = model(**pixels, **tokenizer(LABELS, padding=True, return_tensors="pt")).logits_per_image
    agree(predictions(url, "zero-shot", model="clip", label=LABELS), LABELS, logits[0].softmax(dim=0).numpy())
