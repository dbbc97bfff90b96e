"""The ONNX graph of a bundle is made once, kept, and never trusted unseen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.bundle import Bundle
from models.loading import load
from models.systems.onnx.classifier_backend import GraphError, open_classifier
from tests.support.bundles.vit import write_null, write_tiny_vit

SAMPLE = {"pixels": np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_vit(tmp_path / "bundles")


def graphs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("merge", [[0, 0], [4, 4], [5, 0]])
def test_it_answers_what_the_model_does(bundle: Bundle, tmp_path: Path, merge: list[int]) -> None:
    options = {"merge": merge}
    found = open_classifier(bundle, tmp_path / "graphs", "float32", 1, SAMPLE).forward(SAMPLE, options)
    expected = load(bundle).forward(SAMPLE, options)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])


def test_a_graph_is_made_once(bundle: Bundle, tmp_path: Path) -> None:
    open_classifier(bundle, tmp_path / "graphs", "float32", 1, SAMPLE)
    [path] = (tmp_path / "graphs").iterdir()
    first = path.stat().st_ino
    open_classifier(bundle, tmp_path / "graphs", "float32", 1, SAMPLE)
    assert path.stat().st_ino == first, "a file that is written again is another file"


def test_a_damaged_graph_is_made_again(bundle: Bundle, tmp_path: Path) -> None:
    open_classifier(bundle, tmp_path / "graphs", "float32", 1, SAMPLE)
    [(name, content)] = graphs(tmp_path / "graphs").items()
    (tmp_path / "graphs" / name).write_bytes(content[: len(content) // 2])
    open_classifier(bundle, tmp_path / "graphs", "float32", 1, SAMPLE)
    assert graphs(tmp_path / "graphs") == {name: content}


def test_a_graph_that_computes_something_else_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    model = load(bundle)
    model.model.head.bias += 1e-3  # type: ignore[union-attr, operator]
    open_classifier(bundle, tmp_path / "graphs", "float32", 1, SAMPLE)
    with pytest.raises(GraphError, match=r"differ by .*e-0\d from the model's"):
        open_classifier(bundle, tmp_path / "graphs", "float32", 1, SAMPLE, model)


def test_a_folder_that_cannot_be_written_is_done_without(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "graphs").write_text("a file where the folder should be")
    open_classifier(bundle, tmp_path / "graphs", "float32", 1, SAMPLE)
    open_classifier(bundle, None, "float32", 1, SAMPLE)


def test_an_architecture_without_a_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="architecture null has no ONNX graph"):
        open_classifier(write_null(tmp_path), None, "float32", 1, SAMPLE)
