"""Measurements of words, on tiny pairs: that they run to their end and divide what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks import infinity, text_pairs, words
from models.loading import load
from models.systems.image_text.tokenizer import Tokenizer

TEXT_BLOCK = 2 * (4 * 32 * 32 + 2 * 32 * 64)
"""Operations of one token in a block of the tiny text towers, without attention."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("words")


@pytest.mark.parametrize("name", ["maws", "flip", "cit"])
def test_tokenizers_fit_networks_and_know_words_of_labels(cache: Path, name: str) -> None:
    pair = text_pairs.make_pair(cache, name, "tiny")
    found = Tokenizer.open(pair.bundle).encode(text_pairs.labels(20, 4))
    assert not found.truncated.any() and len({tuple(row) for row in found.tokens.tolist()}) == 20
    written = pair.bundle.weights_path.stat().st_mtime_ns
    assert text_pairs.make_pair(cache, name, "tiny").bundle.weights_path.stat().st_mtime_ns == written


def test_arithmetic_counts_the_pieces_of_each_text(cache: Path) -> None:
    pair = text_pairs.make_pair(cache, "maws", "tiny")
    short, long = pair.text_flops(["of the", "of the of the of the"])
    pieces = Tokenizer.open(pair.bundle).encode(["of the", "of the of the of the"]).visible.sum(axis=1).tolist()
    attention = [2 * 2 * 2 * length * length * 32 for length in pieces]  # two products in each of two blocks
    projection = 2 * 32 * 32
    assert [short, long] == [2 * length * TEXT_BLOCK + more + projection for length, more in zip(pieces, attention, strict=True)]
    assert pair.flops(pieces[1]).text == long


def test_the_loop_pads_every_text_to_the_longest(cache: Path) -> None:
    pair = text_pairs.make_pair(cache, "cit", "tiny")
    assert pair.padding().encode(["of"]).tokens.shape == (1, pair.text.length)
    assert text_pairs.texts_per_second(load(pair.bundle), pair.padding(), text_pairs.captions(5, seed=0), batch=2) > 0


def test_another_server_gets_every_weight(cache: Path, tmp_path: Path) -> None:
    pair = text_pairs.make_pair(cache, "maws", "tiny")
    infinity.write_model(pair.bundle, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["max_length"], config["text_config"]["vocab_size"]) == (pair.text.length, 3000)
    own = sum(tensor.numel() for tensor in load(pair.bundle).model.state_dict().values())
    added = 64 * 65 + 32 * 33 + 32  # two layers before the projections, and a kind of segment
    assert sum(tensor.numel() for tensor in load_file(tmp_path / "model" / "model.safetensors").values()) == own + added


@pytest.mark.slow
def test_a_run_measures_what_it_was_asked_for(cache: Path, tmp_path: Path) -> None:
    report = tmp_path / "words.json"
    words.main(["labels", "cached", "--size", "tiny", "--rounds", "1", "--seconds", "1", "--cache", str(cache), "--json", str(report)])
    plain, templates, cached = json.loads(report.read_text())["figures"]
    for figure in (plain, templates):
        details = {name: value for name, (value,) in figure["details"].items()}
        assert figure["values"] == [pytest.approx(details["first_s"] / details["second_s"] / details["promise"])]
    assert templates["details"]["promise"][0] > 3 * plain["details"]["promise"][0] > 3
    details = cached["details"]
    assert cached["values"] == [pytest.approx(details["zero_shot_per_s"][0] / details["embed_per_s"][0])]
