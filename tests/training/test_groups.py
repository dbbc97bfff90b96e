from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.training.collection import draw, word
from training.data import corpus, groups
from training.data.openclipart import Picture
from training.data.pictures import Pixels
from training.recipe import Data


def on_white(image: Image.Image) -> Pixels:
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    return np.asarray(canvas.convert("RGB"))


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    random_numbers = random.Random(1)
    return [draw(shape, random_numbers) for _ in range(20) for shape in ("ball", "box", "stick")]


def test_numbered_series_and_variants_are_one_group(drawings: list[Image.Image]) -> None:
    paths = ["a/hummer_01.png", "b/hummer_02.png", "c/crab1_bw_ganson.png", "c/crab2_ganson.png", "c/cow.png"]
    group_of = groups.group(paths, [on_white(drawing) for drawing in drawings[:5]])
    assert group_of["a/hummer_01.png"] == group_of["b/hummer_02.png"]
    assert group_of["c/crab1_bw_ganson.png"] == group_of["c/crab2_ganson.png"]
    assert len(set(group_of.values())) == 3


def test_the_same_drawing_in_another_size_and_place_is_found(drawings: list[Image.Image]) -> None:
    original = on_white(drawings[0].resize((192, 160)))
    page = Image.new("RGB", (400, 300), "white")
    page.paste(Image.fromarray(original).resize((150, 125), Image.Resampling.BICUBIC), (200, 40))
    group_of = groups.group(["one.png", "other.png", "third.png"], [original, np.asarray(page), on_white(drawings[1])])
    assert group_of["one.png"] == group_of["other.png"]
    assert group_of["third.png"] != group_of["one.png"]


def test_no_group_is_on_two_sides_of_a_split(drawings: list[Image.Image], tiny_recipe: dict[str, Any]) -> None:
    data = Data.model_validate(tiny_recipe["data"])
    # Of every drawing a second version in another category, and every third one also in a folder without a label.
    paths = [f"things/{place}/{word(n)}_{place}.png" for n in range(60) for place in ("balls", "boxes")]
    pixels = [on_white(drawings[n]) for n in range(60) for _ in range(2)]
    paths += [f"other/{word(n)}_other.png" for n in range(0, 60, 3)]
    pixels += [on_white(drawings[n]) for n in range(0, 60, 3)]
    group_of = groups.group(paths, pixels)
    split = corpus.assign([Picture(path) for path in paths], group_of, data)

    sides = {
        name: {group_of[path] for path in part.paths} for name, part in (("train", split.train), ("val", split.val), ("test", split.test))
    }
    assert all(sides.values())
    assert not sides["train"] & sides["val"] and not sides["train"] & sides["test"] and not sides["val"] & sides["test"]
    pretrain = {group_of[picture.path] for picture in split.pretrain}
    assert not pretrain & (sides["val"] | sides["test"])
    assert any(picture.path.startswith("other/") for picture in split.pretrain)
    assert sum(len(part.paths) for part in (split.train, split.val, split.test)) == 120


def test_a_group_stays_where_it_is_when_others_come() -> None:
    shares = {"train": 0.5, "val": 0.15, "test": 0.35}
    splits = [groups.split_of(f"animals/{number}.png", shares) for number in range(4000)]
    assert [groups.split_of(f"animals/{number}.png", shares) for number in range(0, 4000, 7)] == splits[::7]
    assert {name: splits.count(name) / 4000 for name in shares} == pytest.approx(shares, abs=0.03)
