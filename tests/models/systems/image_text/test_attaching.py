"""The three pairs learn to read texts, each as its authors made it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.bundle import Bundle, read
from models.bundle_schema import TextSpec
from models.checkpoints import import_checkpoint
from models.loading import load
from models.systems.image_text.add_tokenizer import add_tokenizer, prepare_tokenizer
from models.systems.image_text.tokenizer import Tokenizer
from models.systems.image_text.tokenizer_vocabulary import TokenizerError
from tests.golden.case import GOLDEN, read_case
from tests.support import vocabularies
from tests.support.bundles.vit import seal, write_tiny_vit

SENTENCES = ["a photo of a red dog", "a dog and a cat", "the red cat on a mat", "no photo of the mat"] * 20


def import_file(case: str, folder: Path, heads: tuple[int, int]) -> Bundle:
    """Import a recorded checkpoint as a bundle that reads no texts yet."""
    name, family = case.split("/")[0], {"maws": "maws_clip"}.get(case.split("/")[0])
    overrides = {"heads": str(heads[0]), "text_heads": str(heads[1])}
    file = GOLDEN / case / "checkpoint.pth"
    spec, weights = import_checkpoint(
        file, family=family or name, labels=None, overrides=overrides, name=name, version="1", license="CC0-1.0"
    )
    return seal(folder / "bundles", spec, weights)


def logit_scale(case: str) -> float:
    weights = torch.load(GOLDEN / case / "checkpoint.pth", weights_only=True)
    return float(weights.get("target", weights)["logit_scale"].double())


def test_maws_reads_sentencepiece_framed_after_the_cut(tmp_path: Path) -> None:
    made = add_tokenizer(import_file("maws/clip", tmp_path, (5, 4)), vocabularies.sentencepiece_model(tmp_path, 50, SENTENCES), None)
    scale = math.exp(logit_scale("maws/clip"))
    assert made.spec.text == TextSpec(length=102, scale=scale)
    assert scale == pytest.approx(float(read_case(GOLDEN / "maws/clip").outputs["logit_scale"]), rel=1e-6)
    assert (set(made.spec.files), made.spec.embedding_dim) == ({"tokenizer.json"}, 24)
    assert read(made.path).spec == made.spec
    made.verify()
    encoded = Tokenizer.open(made).encode(["a red dog", "a photo of the mat"])
    assert encoded.tokens[:, 0].tolist() == [0, 0]
    assert [int(row[seen == 1][-1]) for row, seen in zip(encoded.tokens, encoded.visible, strict=True)] == [2, 2]
    assert (encoded.tokens[encoded.visible == 0] == 1).all() and (encoded.visible == 0).any()
    network = load(made).model
    with torch.inference_mode():  # its own mask, from the padding, is the tokenizer's
        both = network.encode_texts(torch.from_numpy(encoded.tokens))
        alone = network.encode_texts(torch.from_numpy(encoded.tokens[:1, : int(encoded.visible[0].sum())]))
    assert torch.allclose(both[:1], alone, rtol=1e-5, atol=1e-6)


def test_cit_reads_berts_words_framed(tmp_path: Path) -> None:
    made = add_tokenizer(import_file("cit/moco_tiny", tmp_path, (4, 4)), vocabularies.small_bert(tmp_path, 120), None)
    assert made.spec.text == TextSpec(length=32, scale=math.exp(logit_scale("cit/moco_tiny")))
    encoded = Tokenizer.open(made).encode(["Red dög!", "x " * 40])
    words = (tmp_path / "vocab.txt").read_text().split("\n")
    assert [words[number] for number in encoded.tokens[0][:8]] == ["[CLS]", "red", "dog", "!", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    assert (encoded.tokens.shape, encoded.tokens[1][31], encoded.truncated.tolist()) == ((2, 32), 3, [False, True])


def test_flip_reads_berts_words_alone(tmp_path: Path) -> None:
    made = add_tokenizer(import_file("flip/tiny_m75", tmp_path, (5, 3)), vocabularies.small_bert(tmp_path, 99), None)
    weight = logit_scale("flip/tiny_m75")
    assert made.spec.text == TextSpec(length=12, padding="length", empty=False, scale=min(100.0, math.exp(weight)))
    assert 1 / made.spec.text.scale == pytest.approx(float(read_case(GOLDEN / "flip/tiny_m75").outputs["tau"]), rel=1e-6)
    words = (tmp_path / "vocab.txt").read_text().split("\n")
    assert [words[number] for number in Tokenizer.open(made).encode(["a red dog"]).tokens[0]] == ["a", "red", "dog", *["[PAD]"] * 9]


def test_flip_has_the_scale_of_a_fixed_temperature(tmp_path: Path) -> None:
    made = add_tokenizer(import_file("flip/tiny_m0_fixedtau_t5x", tmp_path, (2, 4)), vocabularies.small_bert(tmp_path, 60), None)
    assert made.spec.text is not None
    assert (made.spec.text.length, made.spec.text.scale) == (6, 100.0)


@pytest.mark.parametrize(("weight", "scale"), [(-1.0, 1.0), (2.0, math.exp(2.0)), (4.7, 100.0), (900.0, 100.0)])
def test_flip_clips_its_scale(weight: float, scale: float, tmp_path: Path) -> None:
    made = import_file("flip/tiny_m75", tmp_path, (5, 3))
    save_file({"logit_scale": torch.tensor([weight], dtype=torch.float64)}, made.weights_path)
    changed = add_tokenizer(made, vocabularies.small_bert(tmp_path, 99), None)
    assert changed.spec.text is not None and changed.spec.text.scale == scale


def test_a_scale_without_bounds_must_be_a_number(tmp_path: Path) -> None:
    made = import_file("cit/moco_tiny", tmp_path, (4, 4))
    for weight in (900.0, math.nan):
        save_file({"logit_scale": torch.tensor(weight)}, made.weights_path)
        with pytest.raises(TokenizerError, match=r"text\.scale: Input should be a finite number"):
            add_tokenizer(made, vocabularies.small_bert(tmp_path, 120), None)


def test_pair_of_other_training_reads_texts_its_own_way(tmp_path: Path) -> None:
    made = import_file("cit/moco_tiny", tmp_path, (4, 4))
    words = vocabularies.small_bert(tmp_path, 120)
    text, content = prepare_tokenizer(made.spec, made.weights_path, words, ["{}!"], max_length=7, special=False)
    assert (text.length, text.templates) == (7, ["{}!"])
    assert json.loads(content)["post_processor"] is None
    bare = tmp_path / "bare.json"
    bare.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"bare\.json: post_processor: puts no token before a text"):
        prepare_tokenizer(made.spec, made.weights_path, bare)
    with pytest.raises(TokenizerError, match="post_processor: 2 special tokens leave no room in texts of 2 word pieces"):
        prepare_tokenizer(made.spec, made.weights_path, words, max_length=2)


def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    made = import_file("cit/moco_tiny", tmp_path, (4, 4))
    fitting, large = (folder for folder in (tmp_path / "fitting", tmp_path / "large"))
    for folder, size in ((fitting, 120), (large, 121)):
        folder.mkdir()
        vocabularies.small_bert(folder, size)
    (tmp_path / "hostile.json").write_text(json.dumps({"model": {"type": "Neural"}}))
    for source, templates, sentence in (
        (large, None, "large: model.vocab: the tokenizer has 121 tokens, and the network's table 120 rows"),
        (tmp_path / "hostile.json", None, "hostile.json: model.type: 'Neural' is not accepted; accepted are WordPiece"),
        (fitting, ["a photo"], "text.templates: template 1, 'a photo': exactly one {} is needed"),
        (fitting, ["{}"] * 101, "text.templates: List should have at most 100 items"),
    ):
        with pytest.raises(TokenizerError) as caught:
            add_tokenizer(made, source, templates)
        assert sentence in str(caught.value)
    assert read(made.path).spec == made.spec
    assert {file.name for file in made.path.iterdir()} == {"bundle.json", "model.safetensors"}
    with pytest.raises(TokenizerError, match="tiny@1: architecture vit has no text tower; maws_clip, cit, clip, flip, siglip have one"):
        add_tokenizer(write_tiny_vit(tmp_path), fitting, None)
