from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bundle_schema import Preprocess
from starters.data.images.clip_art import ClipArt, ClipArtImages, build, series_of
from starters.tests import drawings
from training.data.source import Augment, SamplePreparation
from training.errors import DataError

PREPROCESS = Preprocess(image_size=32, short_side=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("art")
    return drawings.art(folder), folder


def open_source(data: tuple[dict[str, Any], Path], augment: Augment | None = None, **changes: Any) -> ClipArtImages:
    content, cache = data
    preparation = SamplePreparation(PREPROCESS, augment=augment or Augment(crop_scale=None), cache=cache)
    return ClipArt.model_validate(content | changes).open(preparation)


def test_copies_small_empty_and_broken_files_are_left_out(data: tuple[dict[str, Any], Path]) -> None:
    content, cache = data
    collection = build(ClipArt.model_validate(content), cache)
    assert sorted(collection.names) == sorted(
        f"things/{word}_{kind}_0{number}.png" for word in drawings.WORDS for number, kind in enumerate(drawings.KINDS)
    )
    assert collection.left_out == {"unreadable": 1, "too small": 2, "too large": 0, "alike": 1}


def test_every_drawing_is_in_one_split_and_series_stay_together(data: tuple[dict[str, Any], Path]) -> None:
    train, test = open_source(data), open_source(data, part="test")
    assert len(train) + len(test) == 48 and len(train) > len(test) > 0
    assert {series_of(name) for name in train.names}.isdisjoint(series_of(name) for name in test.names)
    assert len({series_of(name) for name in train.names}) * 3 == len(train)


def test_a_drawing_fills_the_square_without_its_margin(data: tuple[dict[str, Any], Path]) -> None:
    train = open_source(data)
    for index in range(len(train)):
        alpha = train.drawings[train.rows[index]][:, :, 3] > 0
        rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 40


def test_a_sample_is_a_function_of_its_draw(data: tuple[dict[str, Any], Path]) -> None:
    augment = Augment(crop_scale=(0.5, 1.0))
    train, again = open_source(data, augment), open_source(data, augment)
    samples = [train.sample(3, draw)["pixels"] for draw in range(20)]
    assert all(torch.equal(sample, again.sample(3, draw)["pixels"]) for draw, sample in enumerate(samples))
    assert len({sample.numpy().tobytes() for sample in samples}) == 20
    assert samples[0].shape == (3, 32, 32) and samples[0].dtype == torch.float32


def test_held_out_drawings_are_on_white_and_training_ones_vary(data: tuple[dict[str, Any], Path]) -> None:
    def corner(source: ClipArtImages, draw: int) -> tuple[float, ...]:
        return tuple(source.sample(blank_corner(source), draw)["pixels"][:, 0, 0].tolist())

    def blank_corner(source: ClipArtImages) -> int:
        return next(index for index, row in enumerate(source.rows) if not source.drawings[row][:4, :4, 3].any())

    white = (1.0, 1.0, 1.0)
    test, train = open_source(data, part="test", coloured=1.0), open_source(data, coloured=0.5)
    assert {corner(test, draw) for draw in range(20)} == {white}
    seen = [corner(train, draw) for draw in range(20)]
    assert 0 < sum(colour == white for colour in seen) < 20


def test_another_cleaning_is_another_cache(data: tuple[dict[str, Any], Path]) -> None:
    content, cache = data
    smaller = build(ClipArt.model_validate(content | {"smallest": 10}), cache)
    assert set(smaller.names) - set(build(ClipArt.model_validate(content), cache).names) == {"things/small.png"}


def test_a_folder_without_drawings_is_named(data: tuple[dict[str, Any], Path]) -> None:
    with pytest.raises(DataError, match="usr/share/doc has no PNG files"):
        open_source(data, folder="usr/share/doc")
