"""Drawings with names: what an epoch shows, what each sample is called, and what is kept from training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.bundle_schema import Preprocess
from starters.data.images.drawing_names import read_names, slug
from starters.data.images.named_drawings import DrawingsWithNames, NamedDrawings, clip_art_of, draw_outlines, part_of
from starters.tests import named
from training.data.captions import open_words
from training.data.packages import NpmPackage
from training.data.source import Augment, SamplePreparation
from training.errors import DataError

PREPROCESS = Preprocess(image_size=16, short_side=16, fit="squeeze", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
LENGTH = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("named")
    return named.data(folder), folder


def open_source(data: tuple[dict[str, Any], Path], augment: Augment | None = None, **changes: Any) -> DrawingsWithNames:
    content, cache = data
    preparation = SamplePreparation(PREPROCESS, augment=augment or Augment(crop_scale=None), words=LENGTH, cache=cache)
    return NamedDrawings.model_validate(content | changes).open(preparation)


def test_epoch_has_each_emoji_once_and_part_of_the_clip_art(data: tuple[dict[str, Any], Path]) -> None:
    every, third = open_source(data), open_source(data, clip_art_every=3)
    art = len(every.drawings.clip_art)
    assert [len(emoji.images) for emoji in every.drawings.emoji].count(2) == 6  # two artists drew these
    assert len(every) == 12 + art and len(third) == 12 + -(-art // 3)
    samples = {third.sample(len(third) - 1, draw)["pixels"].numpy().tobytes() for draw in range(40)}
    assert len(samples) >= 2
    assert third.identity() == every.identity() and len(third.captions) == len(third)


def test_a_sample_is_called_in_english_and_in_another_language(data: tuple[dict[str, Any], Path]) -> None:
    source = open_source(data, names_share=1.0)
    read = open_words(source.settings.words, LENGTH)
    first = source.drawings.emoji[0].texts
    words = source.sample(0, 3)["words"]
    assert torch.equal(words, read.tokenise([first["en"].name, first["fr"].name])) and words.shape == (2, LENGTH)
    assert torch.equal(source.captions.read(torch.tensor([0]))[0], words[0])
    title, keywords = source.sample(len(source) - 1, 3)["words"]
    assert torch.equal(keywords, read.tokenise(["thing"])[0]) and not torch.equal(title, keywords)


def test_a_sample_is_a_function_of_its_draw(data: tuple[dict[str, Any], Path]) -> None:
    augment = Augment(crop_scale=(0.5, 1.0))
    source, again = open_source(data, augment), open_source(data, augment)
    samples = [source.sample(1, draw) for draw in range(8)]
    for draw, sample in enumerate(samples):
        assert all(torch.equal(value, again.sample(1, draw)[name]) for name, value in sample.items())
    assert len({sample["pixels"].numpy().tobytes() for sample in samples}) == 8


def test_outlines_run_where_colours_jump_and_nowhere_else() -> None:
    drawn = Image.new("RGB", (24, 24), "white")
    drawn.paste((255, 0, 0), (8, 8, 16, 16))
    drawn.paste((255, 250, 245), (0, 0, 4, 4))  # a shade
    filled, bare = (np.asarray(draw_outlines(drawn, filled=kind)) for kind in (True, False))
    black = (filled == 0).all(axis=2)
    assert black[7, 7:17].all() and black[16, 7:17].all() and black[7:17, 7].all() and not black[:5].any()
    assert (filled[11:13, 11:13] == (255, 0, 0)).all() and (bare[11:13, 11:13] == 255).all()
    assert np.array_equal((bare == 0).all(axis=2), black) and set(np.unique(bare)) == {0, 255}


def test_recipe_outlines_half_of_the_drawings(data: tuple[dict[str, Any], Path]) -> None:
    plain, half = (open_source(data, coloured=0.0, coarse=0.0, **changes) for changes in ({}, {"outlined": 0.5}))
    same = [torch.equal(plain.sample(0, draw)["pixels"], half.sample(0, draw)["pixels"]) for draw in range(60)]
    assert 15 <= sum(same) <= 45


def test_nothing_is_mirrored_that_has_sides(data: tuple[dict[str, Any], Path]) -> None:
    source = open_source(data, Augment(crop_scale=(1.0, 1.0), flip=True), coloured=0.0, coarse=0.0)
    names = [emoji.texts["en"].name for emoji in source.drawings.emoji]
    triangle = names.index("red left triangle")
    assert [emoji.sided for emoji in source.drawings.emoji] == ["left" in name for name in names]
    pixels = [source.sample(triangle, draw)["pixels"] for draw in range(12)]
    # the tip is on the left: the ink of the left half is less, whatever the draw
    assert all((one[:, :, :8] < 0.9).sum() < (one[:, :, 8:] < 0.9).sum() for one in pixels)


def test_titles_come_from_svg_without_artists_and_file_names(data: tuple[dict[str, Any], Path]) -> None:
    content, cache = data
    entries = [texts for _, texts in clip_art_of(NamedDrawings.model_validate(content), "train", cache).rows]
    assert entries and all(texts.name.startswith("a ") and texts.keywords == ("thing",) for texts in entries)


def test_series_of_clip_art_are_trained_on_or_held_out(data: tuple[dict[str, Any], Path]) -> None:
    content, cache = data
    settings = NamedDrawings.model_validate(content)
    parts = {part: {texts.name for _, texts in clip_art_of(settings, part, cache).rows} for part in ("train", "val", "test")}
    assert parts["train"] and parts["test"] and len(set().union(*parts.values())) == sum(map(len, parts.values()))
    assert part_of("things/cat_01.png") == part_of("things/cat_27.png")
    none = settings.model_copy(update={"without": ["things/"]})
    assert not clip_art_of(none, "train", cache).rows


def test_names_are_found_however_an_artist_writes_them(data: tuple[dict[str, Any], Path]) -> None:
    content, cache = data
    names = read_names(NpmPackage.model_validate(content["names"]["package"]), ["fr", "la"], cache)
    assert slug("Piñata!") == slug("pinata") and slug("red left-triangle") in names
    assert set(names[slug(named.NAMES[0])].texts) == {"en", "fr", "la"} and set(names[slug(named.NAMES[-1])].texts) == {"en", "fr"}
    with pytest.raises(DataError, match=r"xx.*cannot be read as emoji with their names"):
        read_names(NpmPackage.model_validate(content["names"]["package"]), ["xx"], cache)


def test_drawings_without_names_are_refused(data: tuple[dict[str, Any], Path]) -> None:
    with pytest.raises(DataError, match="12 emoji and 0 drawings of clip art have names"):
        open_source(data, without=["things/"])
