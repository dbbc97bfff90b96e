"""`opsin bundles label`, and the classifier that it makes on the real service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.bundle import write
from models.systems.image_text.zero_shot_classifier import make_zero_shot_classifier
from opsin import Client
from tests.support.bundles.image_text import write_tiny_pair
from tests.support.bundles.vit import TINY, write_tiny_vit
from tests.support.live_service import Service
from tests.support.processes import opsin
from tests.support.waiting import eventually

LABELS = ["a red car", "dog", "cat"]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    file = tmp_path / "labels.txt"
    file.write_text("\n".join(LABELS))
    return file


def test_the_classifier_answers_with_the_scores_of_zero_shot(embedding_service: Service, embedding_bundles: Path, labels: Path) -> None:
    ended = opsin("bundles", "label", "animals", "--from", "pair", "--labels", labels, "--bundles", embedding_bundles)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"{embedding_bundles}/animals/1  3 labels, ")
    image = np.random.default_rng(4).integers(0, 256, (TINY.image_size, TINY.image_size, 3), np.uint8)
    with Client(embedding_service.url) as client:
        eventually(lambda: any(model.id == "animals@1" and model.state == "ready" for model in client.models()), "it is served")
        found, expected = client.classify(image, model="animals", top_k=3), client.zero_shot(image, LABELS, top_k=3)
    assert [one.label for one in found.predictions] == [one.label for one in expected.predictions]
    np.testing.assert_allclose([one.score for one in found.predictions], [one.score for one in expected.predictions], atol=2e-5)


def test_templates_may_be_given_and_cut_labels_are_reported(tmp_path: Path, labels: Path) -> None:
    pair = write_tiny_pair(tmp_path, "pair")
    labels.write_text(f"dog\n{'b' * 60}\n")
    command = ("bundles", "label", "animals", "--from", "pair@1", "--labels", labels, "--bundles", tmp_path, "--version", "2")
    ended = opsin(*command, "--template", "one {}", "--template", "the {}")
    assert (ended.returncode, ended.stderr) == (0, f"opsin: 1 label truncated: longer than {pair.spec.id} reads\n")
    visible = opsin("bundles", "show", "animals", "--bundles", tmp_path).stdout
    assert "animals@2  pair@1 with 2 labels of its own" in visible and '["one {}", "the {}"]' in visible


def test_a_pair_in_float16_becomes_a_classifier_in_float16(tmp_path: Path) -> None:
    pair = write_tiny_pair(tmp_path, "pair")
    save_file({key: value.half() for key, value in load_file(pair.weights_path).items()}, tmp_path / "half")
    half = write(tmp_path / "other", pair.spec, tmp_path / "half", files={"tokenizer.json": pair.path / "tokenizer.json"})
    made, _ = make_zero_shot_classifier(half, LABELS, tmp_path, "animals")
    assert {key for key, value in load_file(made.weights_path).items() if value.dtype != torch.float16} == {"head.weight", "head.bias"}


def test_what_cannot_become_a_classifier_is_one_line(tmp_path: Path, labels: Path) -> None:
    write_tiny_pair(tmp_path, "pair")
    write_tiny_pair(tmp_path, "pair", "2")
    write_tiny_pair(tmp_path, "mute", tokenizer=False)
    write_tiny_vit(tmp_path)

    def run_label(pair: str, *extra: str) -> tuple[int, str]:
        ended = opsin("bundles", "label", "animals", "--from", pair, "--labels", labels, "--bundles", tmp_path, *extra)
        assert ended.stdout == "" and ended.stderr.count("\n") == 1
        return ended.returncode, ended.stderr.removeprefix("opsin: ").strip()

    assert run_label("pair") == (2, "--from pair: has several versions; name one of pair@1, pair@2")
    assert run_label("nobody")[0] == 2
    assert run_label("tiny") == (1, "tiny@1: is of task classify; a classifier is made of an image-text pair, of task zero-shot")
    assert run_label("mute") == (1, "mute@1: has no tokenizer; `opsin bundles tokenizer mute FILE` adds one")
    code, sentence = run_label("pair@1", "--template", "nowhere")
    assert code == 2 and "exactly one {} is needed" in sentence
    labels.write_text("dog\n猫\n")
    assert run_label("pair@1") == (1, "labels: '猫' has no word or character in the vocabulary of pair@1")
    labels.write_text("dog\ndog\n")
    assert run_label("pair@1") == (1, "labels: 'dog' is given twice")
