"""How well drawings are named and found: by a pair of towers and by nearest neighbours, on made-up things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bundle_schema import Preprocess
from models.systems.image_text.flip import FLIP, FLIPConfig
from starters.data.images.emoji_names import Texts
from starters.data.images.named_drawings import NamedDrawings
from starters.evaluation import emoji_retrieval
from starters.evaluation.emoji_retrieval import FEATURES, NETWORK, PIXELS, NamingQuality, WordIndex
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
    settings = {"kind": "naming", **artists, "held_back": ["la"], "features": lite0(folder)}
    return NamingQuality.model_validate(settings), data


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("naming")
    settings, data = quality(folder)
    torch.manual_seed(0)
    return emoji_retrieval.evaluate(settings, FLIP(TINY), data, 12, PREPROCESS, DataSplit.TEST, folder, progress=lambda line: None)


def test_twins_are_named_by_nearest_neighbour_above_chance(evaluated: dict[str, Any]) -> None:
    ways = evaluated["emoji"]["ways"]
    assert evaluated["artist"] == "test" and evaluated["emoji"]["n"] == 12 and evaluated["emoji"]["chance"]["top1"] == round(1 / 12, 5)
    assert ways[PIXELS]["top1"]["value"] == 1.0
    assert ways[NETWORK]["top1"]["value"] < 0.7 and ways[PIXELS]["network_minus_this_top1"]["value"] < 0
    assert set(ways) == {NETWORK, PIXELS, FEATURES} == set(evaluated["titles"]["ways"])


def test_titles_that_share_no_word_find_nothing_by_words(evaluated: dict[str, Any]) -> None:
    titles = evaluated["titles"]
    assert titles["n"] >= 4  # "a" is not a word, and the words of the titles are made up
    assert titles["ways"][PIXELS]["top1"]["value"] == 0.0 == titles["ways"][FEATURES]["top1"]["value"]


def test_report_marks_languages_that_were_held_back(evaluated: dict[str, Any]) -> None:
    rows = {row["language"]: row for row in evaluated["languages"]}
    assert {language: row["held_back"] for language, row in rows.items()} == {"en": False, "fr": False, "la": True}
    assert rows["la"]["top1"]["n"] == 10 and rows["fr"]["top1"]["n"] == 12
    assert rows["en"]["top1"] == evaluated["emoji"]["ways"][NETWORK]["top1"]


def test_ties_count_against_what_is_looked_for() -> None:
    scores = torch.tensor([[0.5, 0.5, 0.1], [0.9, 0.2, 0.1], [0.0, 0.1, 0.2]])
    assert np.array_equal(emoji_retrieval.ranks(scores), [1, 1, 0])


def test_rare_words_weigh_more() -> None:
    index = WordIndex([Texts("red car", ("vehicle",)), Texts("red house"), Texts("red tree"), Texts("blue car")])
    assert index.best("Red Car", 2)[0] == 0 and index.best("house", 3) == [1] and index.best("boat", 3) == []


def test_what_is_no_pair_on_named_drawings_is_refused(tmp_path: Path) -> None:
    settings = NamingQuality.model_construct()
    with pytest.raises(RecipeError, match="kind naming is for a FLIP on data of kind named-drawings"):
        emoji_retrieval.evaluate(settings, torch.nn.Linear(1, 1), None, 12, PREPROCESS, DataSplit.VAL, tmp_path)
