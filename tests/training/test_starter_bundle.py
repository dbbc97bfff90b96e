"""The committed starter bundle is what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models import bundle, loading
from models.bundle import Bundle
from training import model_card
from training.data import pictures

EXAMPLES = Path("docs/pictures/clipart")


@pytest.fixture(scope="module")
def starter() -> Bundle:
    (folder,) = Path("bundles/clipart").iterdir()
    return bundle.read(folder)


def test_it_is_small_whole_and_licensed(starter: Bundle) -> None:
    starter.verify()
    assert sum(file.stat().st_size for file in starter.path.iterdir()) <= 12_000_000
    assert "public-domain" in starter.spec.license
    assert (starter.path / "README.md").read_text(encoding="utf-8") == model_card.render(starter.spec)


def test_its_predictions_are_the_recorded_ones(starter: Bundle) -> None:
    model = loading.load(starter)
    recorded = starter.spec.quality["examples"]
    assert sorted(recorded) == sorted(file.name for file in EXAMPLES.glob("*.png"))
    pixels = np.stack([pictures.to_model_size(pictures.open_on_white(EXAMPLES / name), starter.spec.preprocess) for name in recorded])
    scores = torch.from_numpy(model.forward({"pixels": pixels}, {})["logits"]).softmax(dim=1)
    for row, example in zip(scores, recorded.values(), strict=True):
        assert starter.spec.labels[int(row.argmax())] == example["label"]
        assert float(row.max()) == pytest.approx(example["score"], abs=0.01)


def test_it_beats_every_baseline_by_two_standard_errors(starter: Bundle) -> None:
    quality = starter.spec.quality
    assert quality["test_accuracy"]["n"] >= 700
    assert len(quality["baselines"]) == 3
    for rival in quality["baselines"]:
        assert rival["gain"]["value"] > 2 * rival["gain"]["standard_error"], rival["name"]
        assert rival["gain"]["value"] == pytest.approx(quality["test_accuracy"]["value"] - rival["accuracy"]["value"], abs=2e-5)


def test_its_default_rung_is_fast_chosen_on_validation_and_nearly_as_good(starter: Bundle) -> None:
    spec = starter.spec
    rows = {row["rung"]: row for row in spec.quality["ladder"]}
    assert len(rows) >= 5
    assert spec.default_rung is not None
    default = rows[spec.default_rung]
    fast = [row for row in rows.values() if row["throughput"] >= 1.5]
    assert default in fast
    assert default["val_accuracy"]["value"] == max(row["val_accuracy"]["value"] for row in fast)
    assert default["drop"]["value"] <= max(0.005, 2 * default["drop"]["standard_error"])
    for rung in spec.ladder:
        assert rung.accuracy == rows[rung.name]["test_accuracy"]["value"]
        assert rung.throughput == rows[rung.name]["throughput"]
