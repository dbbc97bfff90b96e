"""A pair and labels become a classifier: its logits are scale × cosine, exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import Bundle, BundleError
from models.loading import LoadedModel, load
from models.systems.image_text.cit import CiT, VisionTower
from models.systems.image_text.tokenizer import Tokenizer
from models.systems.image_text.zero_shot_classifier import make_zero_shot_classifier
from models.systems.vit.onnx_graph import classifier_graph
from tests.support.bundles.image_text import SMALL, write_tiny_pair

LABELS = ["red car", "dog", "cat", "a very red cat"]
TEMPLATES = ["a photo of a {}.", "a {}"]
PIXELS = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
MERGE = {"merge": [4, 3]}


def compute_expected(pair: Bundle, templates: list[str], options: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Logits by the pair's own two towers, (images, labels)."""
    loaded, tokenizer = load(pair), Tokenizer.open(pair)
    images = loaded.forward({"pixels": PIXELS}, options)["embedding"].astype(np.float64)
    encoded = tokenizer.encode([template.replace("{}", one) for one in LABELS for template in templates])
    texts = loaded.forward({"word_ids": encoded.tokens[None], "visible": encoded.visible[None]}, {})["embedding"][0]
    classes = texts.astype(np.float64).reshape(len(LABELS), len(templates), -1).mean(axis=1)
    assert pair.spec.text is not None
    return pair.spec.text.scale * images @ (classes / np.linalg.norm(classes, axis=1, keepdims=True)).T


@pytest.mark.parametrize("options", [{}, MERGE], ids=["off", "merged"])
@pytest.mark.parametrize("templates", [None, ["one {} only"]], ids=["own", "given"])
@pytest.mark.parametrize("architecture", SMALL)
def test_the_classifier_has_the_logits_of_the_pair(
    architecture: str, templates: list[str] | None, options: dict[str, Any], tmp_path: Path
) -> None:
    pair = write_tiny_pair(tmp_path, architecture=architecture, templates=TEMPLATES)
    made, truncated = make_zero_shot_classifier(pair, LABELS, tmp_path, "labelled", templates=templates)
    assert (made.spec.task, made.spec.architecture, made.spec.labels, truncated) == ("classify", "vit", LABELS, 0)
    logits = load(made).forward({"pixels": PIXELS}, options)["logits"]
    wanted_value = compute_expected(pair, templates or TEMPLATES, options)
    np.testing.assert_allclose(logits, wanted_value, atol=2e-5)  # float32, logits to 20
    assert np.abs(wanted_value - wanted_value.mean(axis=0)).max() > 0.1, "the images differ"


def test_its_graph_computes_the_same(tmp_path: Path) -> None:
    import onnxruntime

    made, _ = make_zero_shot_classifier(write_tiny_pair(tmp_path), LABELS, tmp_path, "labelled")
    loaded: LoadedModel = load(made)
    session = onnxruntime.InferenceSession(classifier_graph(loaded.model, made.spec.image_preprocess), providers=["CPUExecutionProvider"])
    [logits] = session.run(None, {"pixels": PIXELS, "merge": np.array(MERGE["merge"])})
    np.testing.assert_allclose(logits, loaded.forward({"pixels": PIXELS}, MERGE)["logits"], atol=1e-4)


def test_it_carries_no_text_tower_and_says_where_it_comes_from(tmp_path: Path) -> None:
    pair = write_tiny_pair(tmp_path)
    made, _ = make_zero_shot_classifier(pair, LABELS, tmp_path, "labelled", "2", templates=["{}"])
    assert made.path == tmp_path / "labelled" / "2"
    assert made.spec.weights.bytes < pair.spec.weights.bytes and not made.spec.files and made.spec.text is None
    scale = pytest.approx(np.exp(3.0))
    assert made.spec.provenance == {"pair": "words@1", "pair_digest": pair.spec.digest(), "templates": ["{}"], "scale": scale}
    made.verify()


def test_labels_that_are_too_long_are_counted(tmp_path: Path) -> None:
    _, truncated = make_zero_shot_classifier(write_tiny_pair(tmp_path), ["dog", "b" * 60], tmp_path, "labelled")
    assert truncated == 1


@pytest.mark.parametrize(
    ("labels", "reason"),
    [(["dog"], "at least two"), (["dog", " "], "number 2 is empty"), (["dog", "cat", "dog "], "'dog' is given twice")],
)
def test_labels_that_no_request_could_have_are_refused(labels: list[str], reason: str, tmp_path: Path) -> None:
    pair = write_tiny_pair(tmp_path)
    with pytest.raises(BundleError, match=reason):
        make_zero_shot_classifier(pair, labels, tmp_path, "labelled")


def test_pairs_that_cannot_become_one_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changed, pytest.raises(BundleError, match="moco@1: its images pass MoCo-v3's projector"):
        changed.setitem(SMALL, "cit", (CiT, replace(SMALL["cit"][1], tower=VisionTower.MOCO, projector_hidden=16, projector_width=8)))
        make_zero_shot_classifier(write_tiny_pair(tmp_path, "moco"), LABELS, tmp_path, "labelled")
    with pytest.raises(BundleError, match=r"mute@1: has no tokenizer; `opsin bundles tokenizer mute FILE`"):
        make_zero_shot_classifier(write_tiny_pair(tmp_path, "mute", tokenizer=False), LABELS, tmp_path, "labelled")
    made, _ = make_zero_shot_classifier(write_tiny_pair(tmp_path), LABELS, tmp_path, "labelled")
    with pytest.raises(BundleError, match="labelled@1: is of task classify"):
        make_zero_shot_classifier(made, LABELS, tmp_path, "again")
    with pytest.raises(BundleError, match="exists already"):
        make_zero_shot_classifier(write_tiny_pair(tmp_path, "other"), LABELS, tmp_path, "labelled")
