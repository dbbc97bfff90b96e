from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from starters.data.images import flags
from starters.data.images.flags import Corpus, FlagArtwork, Flags
from starters.tests.collection import COLOURS
from training import recipe
from training.errors import DataError, RecipeError


@pytest.fixture(scope="module")
def data(tiny_recipe: dict[str, Any]) -> Flags:
    return Flags.model_validate(tiny_recipe["data"])


@pytest.fixture(scope="module")
def corpus(data: Flags, cache: Path) -> Corpus:
    return flags.build(data, cache)


def halves(drawings: FlagArtwork, index: int) -> list[str]:
    """Return the colours in the middle of the upper and the lower half."""
    picture = drawings.artwork[index]
    assert picture[3].min() == 255
    return ["#" + "".join(f"{value:02x}" for value in picture[:3, row, 12].tolist()) for row in (5, 18)]


def test_every_drawing_has_the_flag_of_its_label(corpus: Corpus) -> None:
    codes = list(COLOURS)
    for drawings in (corpus.train, corpus.val):
        for index, target in enumerate(drawings.targets.tolist()):
            assert halves(drawings, index) == list(COLOURS[codes[target]])


def test_held_out_drawings_and_countries_are_not_trained_on(corpus: Corpus) -> None:
    assert sorted(corpus.val.targets.tolist()) == [0, 3]  # every third of the artwork that is held out
    assert sorted(corpus.train.targets.tolist()) == [0, 1, 1, 2, 2, 3, 4, 4, 5]  # "small" draws FF as another country's


def test_galleries_are_by_source_without_what_is_excluded(corpus: Corpus) -> None:
    assert [(gallery.name, gallery.targets) for gallery in corpus.galleries] == [
        ("Tiny emoji", (0, 1, 2, 3, 4, 5)),
        ("Tiny clip art", (0, 1, 2, 3, 4, 5)),
    ]


def test_a_cut_out_flag_fills_the_square_without_its_margin(corpus: Corpus) -> None:
    cut = flags.cut_out(corpus.galleries[0], 24)
    assert cut.artwork.shape == (6, 4, 24, 24)
    assert [halves(cut, index) for index in range(6)] == [list(colours) for colours in COLOURS.values()]


def test_drawings_come_back_from_the_cache_as_they_were(data: Flags, cache: Path, corpus: Corpus) -> None:
    again = flags.build(data, cache)
    assert torch.equal(again.train.artwork, corpus.train.artwork)
    assert torch.equal(again.train.targets, corpus.train.targets)


def test_a_picture_that_the_package_lacks_is_named(tiny_recipe: dict[str, Any], cache: Path) -> None:
    content = copy.deepcopy(tiny_recipe["data"])
    content["labels"]["ZZ"] = "Zland"
    with pytest.raises(DataError, match=r"zz\.svg: the package has no such picture"):
        flags.build(Flags.model_validate(content), cache)


def test_artwork_keeps_its_transparency(tmp_path: Path) -> None:
    circle = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="4" r="4" fill="red"/></svg>'
    (tmp_path / "circle.svg").write_text(circle)
    pixels = np.asarray(flags.rasterise(tmp_path / "circle.svg"))
    assert pixels[0, 0, 3] == 0 and pixels[256, 256].tolist() == [255, 0, 0, 255]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("held_out", "none", "none is not among the artworks"),
        ("labels.BB", "AAland", "two have the same name"),
        ("left_out.AA", "forgotten", "AA: labels have these codes"),
        ("clip_art.pictures.stray", "XX", "XX: no label has this code"),
    ],
)
def test_contradicting_data_is_refused(tiny_recipe_file: Path, field: str, value: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe.read(tiny_recipe_file, [f"data.{field}={value}"])
