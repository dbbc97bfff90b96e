"""How well drawings are named and found: by a pair of towers and by nearest neighbours, on made-up things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bundle_schema import Preprocess
from models.systems.image_text.flip import FLIP, FLIPConfig
from starters.data.images.named_drawings import NamedDrawings
from starters.evaluation import emoji_retrieval
from starters.evaluation.emoji_retrieval import FEATURES, NETWORK, NamingQuality
from starters.tests import named
from starters.tests.drawings import lite0
from training.errors import RecipeError
from training.evaluation.settings import DataSplit

PREPROCESS = Preprocess(image_size=16, short_side=16, fit="squeeze", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TINY = FLIPConfig(
    image_size=16,
    patch_size=8,
    width=16,
    depth=1,
    heads=2,
    text_width=16,
    text_depth=1,
    text_heads=2,
    text_hidden=16,
    vocabulary=64,
    text_length=12,
    joint_width=8,
)


def quality(folder: Path) -> tuple[NamingQuality, NamedDrawings]:
    data = NamedDrawings.model_validate(named.data(folder))
    artists = {split: named.style(folder, split, named.NAMES) for split in ("validation", "test")}
    settings = {"kind": "naming", **artists, "features": lite0(folder)}
    return NamingQuality.model_validate(settings), data


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("naming")
    settings, data = quality(folder)
    torch.manual_seed(0)
    return emoji_retrieval.evaluate(settings, FLIP(TINY), data, 12, PREPROCESS, DataSplit.TEST, folder)


def test_twins_are_named_by_nearest_neighbour_above_chance(evaluated: dict[str, Any]) -> None:
    ways = evaluated["emoji"]["ways"]
    assert evaluated["artist"] == "test" and evaluated["emoji"]["n"] == 12 and evaluated["emoji"]["chance"]["top1"] == round(1 / 12, 5)
    assert set(ways) == {NETWORK, FEATURES}
    assert ways[NETWORK]["top1"]["value"] < 0.7 and ways[FEATURES]["top1"]["value"] > 1 / 12
    assert ways[FEATURES]["network_minus_this_top1"]["value"] < 0


def test_ties_count_against_what_is_looked_for() -> None:
    scores = torch.tensor([[0.5, 0.5, 0.1], [0.9, 0.2, 0.1], [0.0, 0.1, 0.2]])
    assert np.array_equal(emoji_retrieval.ranks(scores), [1, 1, 0])


def test_what_is_no_pair_on_named_drawings_is_refused(tmp_path: Path) -> None:
    settings = NamingQuality.model_construct()
    with pytest.raises(RecipeError, match="kind naming is for a FLIP on data of kind named-drawings"):
        emoji_retrieval.evaluate(settings, torch.nn.Linear(1, 1), None, 12, PREPROCESS, DataSplit.VAL, tmp_path)
