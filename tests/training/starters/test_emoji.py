"""Emoji in several styles, whose concepts are trained on or held out in all of them; and several sources as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from models.spec import Preprocess
from tests.training.collection import npm
from training.data.base import Augment, Preparation
from training.data.registry import Mixture, open_source
from training.errors import DataError
from training.starters.images import emoji
from training.starters.images.emoji import Emoji

THINGS = [f"thing-{number}" for number in range(40)]
PEOPLE = ["man-cook", "woman-cook", "man-cook-light-skin-tone", "flag-france", "chequered-flag", "one-oclock", "two-thirty"]
PREPROCESS = Preprocess(image_size=16, short_side=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))


def style(folder: Path, name: str, names: list[str], colour: str) -> dict[str, Any]:
    body = f'<circle cx="8" cy="8" r="6" fill="{colour}"/>'
    content = {"prefix": name, "width": 16, "height": 16, "icons": {icon: {"body": body} for icon in names}}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(content))
    return {"name": name, "package": npm(folder, f"tiny-{name}", {"icons.json": file}), "license": "CC0"}


@pytest.fixture(scope="module")
def styles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("emoji")
    squashed = [name.replace("-", "") for name in THINGS] + ["unheardof", "mancook"]
    return folder, [style(folder, "first", THINGS + PEOPLE, "#ff0000"), style(folder, "second", squashed, "#0000ff")]


def opened(styles: tuple[Path, list[dict[str, Any]]], **changes: Any) -> emoji.EmojiImages:
    folder, listed = styles
    settings = Emoji.model_validate({"styles": listed, "held_out_every": 4, "side": 16, **changes})
    return emoji.open_emoji(settings, Preparation(PREPROCESS, augment=Augment(), cache=folder))


def concepts(source: emoji.EmojiImages) -> set[str]:
    return {concept for name, concept in emoji.concepts_of(source.names, "first").items() if name in source.names}


def test_a_concept_is_trained_on_or_held_out_in_every_style(styles: tuple[Path, list[dict[str, Any]]]) -> None:
    train, test = opened(styles), opened(styles, part="test")
    assert concepts(train) and concepts(test) and not concepts(train) & concepts(test)
    both = {*train.names, *test.names}
    assert len(both) == len(train) + len(test) == 2 * len(THINGS) + 2 + 1 + 2
    for thing in THINGS:
        names = {f"first/{thing}", f"second/{thing.replace('-', '')}"}
        assert names <= set(train.names) or names <= set(test.names)


def test_flags_skin_tones_and_unknown_names_are_left_out(styles: tuple[Path, list[dict[str, Any]]]) -> None:
    names = {name for part in ("train", "test") for name in opened(styles, part=part).names}
    assert not [name for name in names if "flag" in name or "tone" in name or "unheard" in name]


def test_who_does_a_thing_and_the_hour_make_no_concept(styles: tuple[Path, list[dict[str, Any]]]) -> None:
    found = emoji.concepts_of([f"first/{name}" for name in PEOPLE], "first")
    assert found == {
        "first/man-cook": "cook",
        "first/woman-cook": "cook",
        "first/one-oclock": "clock-face",
        "first/two-thirty": "clock-face",
    }


def test_drawings_are_on_white_where_they_are_evaluated(styles: tuple[Path, list[dict[str, Any]]]) -> None:
    source = opened(styles, part="test", coloured=1.0)
    image = source.image(0)
    assert image.size == (16, 16) and image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((8, 8)) == ((255, 0, 0) if source.names[0].startswith("first") else (0, 0, 255))
    assert source.sample(0, 7)["pixels"].shape == (3, 16, 16)


def test_an_epoch_of_a_mixture_has_so_many_samples_of_each(styles: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, listed = styles
    emojis = {"kind": "emoji", "side": 16, "coloured": 0.0, "coarse": 0.0}
    parts = [
        {"samples": 30, "data": {**emojis, "styles": listed[:1]}},
        {"samples": 10, "data": {**emojis, "styles": [{**listed[1], "name": "first"}]}},
    ]
    settings = Mixture.model_validate({"parts": parts})
    source = open_source(settings, Preparation(PREPROCESS, augment=Augment(crop_scale=None), cache=folder))
    assert len(source) == 40 and set(source.identity()) == {"0", "1"}
    red = [bool(source.sample(index, 11 * index)["pixels"][0, 8, 8] > 1) for index in range(40)]
    assert red == [True] * 30 + [False] * 10
    assert torch.equal(source.sample(3, 5)["pixels"], source.sample(3, 5)["pixels"])


def test_data_may_be_that_of_another_recipe(tmp_path: Path, styles: tuple[Path, list[dict[str, Any]]]) -> None:
    recipe = tmp_path / "other.yaml"
    recipe.write_text(json.dumps({"data": {"kind": "emoji", "styles": styles[1], "held_out_every": 5}}))
    settings = Mixture.model_validate({"parts": [{"samples": 4, "data": {"recipe": str(recipe), "side": 20}}]})
    data = settings.parts[0].data
    assert isinstance(data, Emoji) and (data.side, data.held_out_every) == (20, 5)
    with pytest.raises(ValidationError, match=r"nowhere\.yaml cannot be read"):
        Mixture.model_validate({"parts": [{"samples": 4, "data": {"recipe": "nowhere.yaml"}}]})


def test_a_package_that_is_no_set_of_iconify_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    bad = {"name": "bad", "package": npm(tmp_path, "tiny-bad", {"icons.json": tmp_path / "bad.json"}), "license": "CC0"}
    with pytest.raises(DataError, match="cannot be read as a set of Iconify"):
        opened((tmp_path, [bad]))
