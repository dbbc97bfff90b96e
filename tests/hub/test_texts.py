"""A pair in the layout of transformers brings its tokenizer: `opsin import` makes a bundle that reads texts as the library does."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from models.bundle import read
from models.loading import load
from models.systems.image_text.zero_shot_classifier import make_zero_shot_classifier
from server.tasks.embedding.zero_shot import to_scores
from tests.hub.conftest import normalise
from tests.support.processes import opsin

TEXTS = ["a photo of a red car", "The dog sleeps!", "", "don't stop it's 2024", "ha " * 40, "Ünïcode  façade\n"]
MAX_DIFFERENCE = 1e-4


@pytest.fixture(scope="module")
def bundles(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    templates = root / "templates.txt"
    templates.write_text("a photo of a {}.\n{}\n")
    ended = opsin("import", clip, "-o", root / "clip", "--templates", templates)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "2 templates" in ended.stdout
    return root


def encode(texts: list[str]) -> dict[str, np.ndarray]:
    rows = [text.encode() or b" " for text in texts]
    utf8 = np.zeros((1, len(rows), max(map(len, rows))), np.uint8)
    for place, row in enumerate(rows):
        utf8[0, place, : len(row)] = np.frombuffer(row, np.uint8)
    return {"utf8": utf8, "lengths": np.array([[len(row) for row in rows]], np.int32)}


def test_texts_have_the_vectors_that_the_library_gives_them(clip: Path, bundles: Path) -> None:
    made = read(bundles / "clip/1")
    assert made.spec.license == "MIT"
    assert made.spec.text is not None
    assert (made.spec.text.length, made.spec.text.scores) == (16, "softmax")
    assert made.spec.text.scale == pytest.approx(np.exp(2.6592), rel=1e-6)
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    tokens = transformers.CLIPTokenizer.from_pretrained(clip)(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.inference_mode():
        expected = model(pixel_values=torch.zeros(1, 3, 32, 32), **tokens).text_embeds.numpy()
    found = load(made).forward(encode(TEXTS), {})
    assert np.abs(found["embedding"][0] - expected).max() <= MAX_DIFFERENCE
    assert found["truncated"][0].tolist()[:5] == [False, False, False, False, True]


def test_rejected_tokenizer_leaves_pair_without_texts(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(clip, folder)
    (folder / "tokenizer.json").write_text('{"model": {"type": "Neural"}}')
    ended = opsin("import", folder, "-o", tmp_path / "clip")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"note          the tokenizer was not imported: {folder}/tokenizer.json: model.type: 'Neural' is not accepted" in ended.stdout
    assert "`opsin bundles tokenizer clip FILE` adds one" in ended.stdout
    assert read(tmp_path / "clip/1").spec.text is None


def test_texts_and_scores_of_siglip_are_those_of_the_library(siglip: Path, tmp_path: Path) -> None:
    ended = opsin("import", siglip, "-o", tmp_path / "siglip")
    assert (ended.returncode, ended.stderr) == (0, "")
    made = read(tmp_path / "siglip/1")
    text = made.spec.text
    assert text is not None and (text.length, text.padding, text.scores, text.bias) == (16, "length", "sigmoid", pytest.approx(-2.5))
    model = transformers.SiglipModel.from_pretrained(siglip).eval()
    tokenizer = transformers.SiglipTokenizer(str(siglip / "spiece.model"))
    tokens = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="pt")["input_ids"]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = model(pixel_values=normalise(pixels, made.spec.image_preprocess), input_ids=tokens)
    pair = load(made)
    images, texts = pair.forward({"pixels": pixels}, {})["embedding"], pair.forward(encode(TEXTS), {})["embedding"][0]
    assert np.abs(texts - expected.text_embeds.numpy()).max() <= MAX_DIFFERENCE
    scores = to_scores(images @ texts.T, text)
    assert np.abs(scores - expected.logits_per_image.sigmoid().numpy()).max() <= MAX_DIFFERENCE


def test_labels_become_the_head_of_its_image_tower(bundles: Path) -> None:
    pair = read(bundles / "clip/1")
    classifier, truncated = make_zero_shot_classifier(pair, ["red car", "dog"], bundles, "labelled", templates=["a photo of a {}."])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    texts = load(pair).forward(encode(["a photo of a red car.", "a photo of a dog."]), {})["embedding"][0]
    images = load(pair).forward({"pixels": pixels}, {})["embedding"]
    assert pair.spec.text is not None
    expected = images @ texts.T * pair.spec.text.scale
    assert truncated == 0
    assert np.abs(load(classifier).forward({"pixels": pixels}, {})["logits"] - expected).max() <= 1e-3  # of logits up to 14
