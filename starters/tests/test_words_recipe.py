"""The recipe of words: evaluation artists are held out, and a tiny recipe becomes a bundle that encodes texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from models import bundle, loading
from models.bundle import Bundle
from models.registry import architectures
from models.systems.image_text.flip import FLIPConfig
from models.systems.image_text.tokenizer import Tokenizer, read_file
from starters.data.images.named_drawings import NamedDrawings
from starters.evaluation import cards as model_card
from starters.evaluation.emoji_retrieval import NamingQuality
from starters.tests import named
from starters.tests.drawings import lite0
from training import cli, recipe
from training.recipe import Recipe

RECIPE = Path("starters/recipes/words.yaml")
MAX_BYTES = 16_000_000


@pytest.fixture(scope="module")
def words() -> Recipe:
    return recipe.read(RECIPE)


def parts(words: Recipe) -> tuple[NamedDrawings, NamingQuality]:
    assert isinstance(words.data, NamedDrawings)
    assert words.release is not None and isinstance(words.release.quality, NamingQuality)
    return words.data, words.release.quality


def test_no_artist_that_is_held_back_is_learnt(words: Recipe) -> None:
    data, quality = parts(words)
    learnt = {style.package.name for style in data.styles}
    assert len({style.name.split("-")[0] for style in data.styles}) == 4 and not learnt & {
        quality.validation.package.name,
        quality.test.package.name,
    }
    assert quality.validation != quality.test
    assert len(data.names.languages) == 23 and "en" not in data.names.languages  # and English
    for phase in words.phases:
        assert phase.data in (None, data) or phase.data == data.model_copy(update={"outlined": 0.5})


def test_vocabulary_fits_network_and_bundle_stays_small(words: Recipe) -> None:
    data, _ = parts(words)
    config: Any = words.model_of(words.phases[0]).resolve(labels=0)
    assert isinstance(config, FLIPConfig) and config.text_length == words.words
    file = read_file(data.words.tokenizer)
    assert file.vocabulary == config.vocabulary == 8000
    network = words.model_of(words.phases[0])
    count = sum(parameter.numel() for parameter in architectures()[network.architecture].build(config).parameters())
    assert 2 * count + data.words.tokenizer.stat().st_size < MAX_BYTES


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny recipe, trained and released by the command."""
    folder = tmp_path_factory.mktemp("words")
    artists = {split: named.style(folder, split, named.NAMES) for split in ("validation", "test")}
    content = {
        "name": "tiny-words",
        "version": "0.1",
        "license": "CC0-1.0",
        "words": 12,
        "preprocess": {"image_size": 16, "short_side": 16, "fit": "squeeze", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "augment": {"crop_scale": [0.8, 1.0], "flip": True},
        "model": {
            "architecture": "flip",
            "config": {
                "image_size": 16,
                "patch_size": 4,
                "width": 16,
                "depth": 1,
                "heads": 2,
                "joint_width": 8,
                "text_width": 16,
                "text_depth": 1,
                "text_heads": 2,
                "text_hidden": 16,
                "text_length": 12,
                "vocabulary": 64,
            },
        },
        "data": named.data(folder),
        "phases": [
            {
                "name": "only",
                "initial": "whitened",
                "objective": {"kind": "proxies"},
                "optimiser": {"lr": 0.001},
                "loop": {"epochs": 1, "batch_size": 8},
            }
        ],
        "release": {"task": "zero-shot", "quality": {"kind": "naming", **artists, "features": lite0(folder)}},
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(content))
    options = ["--runs", folder / "runs", "--bundles", folder / "bundles", "--cache", folder, "--no-tensorboard"]
    assert cli.main([str(file), *map(str, options)]) == 0
    return bundle.read(folder / "bundles/tiny-words/0.1")


def test_bundle_tokenizes_with_vocabulary_of_its_training(made: Bundle) -> None:
    assert made.spec.text is not None and made.spec.text.length == 12 and made.spec.text.templates == ["{}"]
    read = Tokenizer.open(made).encode(["red circle", "cadenas"])
    assert read.tokens.shape == (2, 12) and len({row.tobytes() for row in read.tokens}) == 2
    model = loading.load(made)
    answer = model.forward({"pixels": np.zeros((1, 16, 16, 3), dtype=np.uint8)}, {})
    assert all(np.isfinite(value).all() for value in answer.values() if np.issubdtype(value.dtype, np.floating))


def test_its_card_compares_with_a_baseline(made: Bundle) -> None:
    card = (made.path / "README.md").read_text(encoding="utf-8")
    assert card == model_card.render(made.spec)
    for text in ("nearest neighbour by EfficientNet-Lite0", "12 English names"):
        assert text in card
