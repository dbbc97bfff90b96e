"""The committed starter bundle is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import bundle, loading
from models.bundle import Bundle
from starters.evaluation import cards as model_card
from training.data import load_image

EXAMPLES = Path("docs/pictures/flags")


@pytest.fixture(scope="module")
def starter() -> Bundle:
    (folder,) = Path("bundles", "flags").iterdir()
    return bundle.read(folder)


@pytest.fixture(scope="module")
def sources(starter: Bundle) -> dict[str, dict[str, Any]]:
    return {source["name"]: source for source in starter.spec.quality["sources"]}


def test_it_is_small_whole_and_licensed(starter: Bundle) -> None:
    starter.verify()
    assert sum(file.stat().st_size for file in starter.path.iterdir()) <= 15_000_000
    assert "MIT" in starter.spec.license
    assert len(starter.spec.labels) == len(set(starter.spec.labels)) == 238
    card, heading, integers = (starter.path / "README.md").read_text(encoding="utf-8").partition("\n## 8-bit integers\n")
    rendered = model_card.render(starter.spec).splitlines()
    assert [line for line in rendered if line.startswith("|") and line not in card.splitlines()] == []
    assert heading and all(f"| {rung.name} |" in integers for rung in starter.spec.ladder)


def test_its_predictions_are_the_recorded_ones(starter: Bundle) -> None:
    model = loading.load(starter)
    recorded = starter.spec.quality["examples"]
    assert sorted(recorded) == sorted(file.name for file in EXAMPLES.glob("*.png"))
    pixels = np.stack(
        [load_image.to_model_size(load_image.open_on_white(EXAMPLES / name), starter.spec.image_preprocess) for name in recorded]
    )
    scores = torch.from_numpy(model.forward({"pixels": pixels}, {})["logits"]).softmax(dim=1)
    for row, example in zip(scores, recorded.values(), strict=True):
        assert starter.spec.labels[int(row.argmax())] == example["label"]
        assert float(row.max()) == pytest.approx(example["score"], abs=0.01)


def test_it_is_evaluated_on_flags_that_others_drew(sources: dict[str, dict[str, Any]]) -> None:
    counts = {name: source["top1"]["n"] for name, source in sources.items()}
    assert counts == {
        "Google's emoji": 238,
        "Twitter's emoji": 238,
        "Open Clip Art": 236,
        "Open Clip Art, unfiltered": 260,
        "Google's emoji, distorted": 238,
        "Twitter's emoji, distorted": 238,
        "Open Clip Art, distorted": 236,
        "all, clean": 712,
        "all, distorted": 712,
    }


def test_it_beats_pixels_where_pixels_do_not_suffice(sources: dict[str, dict[str, Any]]) -> None:
    for name, source in sources.items():
        gain = source["baselines"]["nearest neighbour"]["gain"]
        assert gain["value"] > 2 * gain["standard_error"], name
    nearest = sources["all, distorted"]["baselines"]["nearest neighbour"]["gain"]
    assert nearest["value"] >= 0.3


def costs_little(drop: dict[str, float]) -> bool:
    return drop["value"] <= max(0.005, 2 * drop["standard_error"])


def test_default_rung_is_fast_and_nearly_as_accurate(starter: Bundle) -> None:
    spec = starter.spec
    rows = {row["rung"]: row for row in spec.quality["ladder"]}
    assert len(rows) >= 5
    assert spec.default_rung is not None
    default = rows[spec.default_rung]
    fast = [row for row in rows.values() if row["throughput"] >= 1.5]
    assert default in fast
    assert default["val_accuracy"]["value"] == max(row["val_accuracy"]["value"] for row in fast)
    # One of the fast rungs costs next to nothing. The default is chosen on validation pictures, so that it may be another.
    assert any(all(costs_little(row[drop]) for drop in ("drop", "distorted_drop")) for row in fast)
    assert max(default["drop"]["value"], default["distorted_drop"]["value"]) <= 0.01
    for rung in spec.ladder:
        assert rung.accuracy == rows[rung.name]["test_accuracy"]["value"]
        assert rung.throughput == rows[rung.name]["throughput"]
