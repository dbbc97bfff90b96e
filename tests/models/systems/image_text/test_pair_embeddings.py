"""Vectors of images and texts of the three pairs as a worker asks for them, against the recorded ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from models.loading import LoadedModel
from models.registry import architectures
from tests.golden.case import GOLDEN, Case, read_case
from tests.golden.checks import Arrays, are_units, cosines, load_case, pixels_of, random_pixels, zero_parameters


@dataclass(frozen=True)
class CaseNames:
    """The names that a case gives to what all cases have."""

    case: str
    family: str
    settings: dict[str, str]
    image: str
    image_vector: str
    word_ids: str
    visible: str | None
    """None: the ids that are not `padding`."""
    text_vector: str
    scale: str
    padding: int = 0

    @property
    def read(self) -> Case:
        return read_case(GOLDEN / self.case)

    @property
    def images(self) -> Tensor:
        """(B, 3, S, S)."""
        images = self.read.inputs[self.image]
        return images.permute(0, 3, 1, 2) if self.image.endswith("nhwc") else images

    @property
    def texts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Word ids and which are visible, (n, N) each."""
        inputs = self.read.inputs
        words = inputs[self.word_ids].long()
        visible = (words != self.padding).long() if self.visible is None else inputs[self.visible].long()
        return words.numpy(), visible.numpy()


def flip(case: str, heads: int, text_heads: int) -> CaseNames:
    settings = {"heads": str(heads), "text_heads": str(text_heads)}
    return CaseNames(
        f"flip/{case}", "flip", settings, "image_nhwc", "eval_image_features", "txt", "txt_is_valid", "eval_text_features", "tau"
    )


CIT = ("pixel_values", "image_embeds_normalized", "input_ids", "attention_mask", "text_embeds_normalized", "logit_scale")
PAIRS = {
    "maws": CaseNames(
        "maws/clip",
        "maws_clip",
        {"heads": "5", "text_heads": "4"},
        "img",
        "image_features",
        "tokens",
        None,
        "text_features",
        "logit_scale",
        1,
    ),
    "moco": CaseNames("cit/moco_tiny", "cit", {"heads": "4", "text_heads": "4"}, *CIT),
    "augreg": CaseNames("cit/augreg_tiny", "cit_augreg", {"heads": "2", "text_heads": "6"}, *CIT),
    "flip": flip("tiny_m75", 5, 3),
    "flip_t5x": flip("tiny_m50_t5x", 4, 4),
    "flip_fixed": flip("tiny_m0_fixedtau_t5x", 2, 4),
}
LINEAR = [name for name in PAIRS if name != "moco"]
MERGE = (3, 2)


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> CaseNames:
    return PAIRS[request.param]


@pytest.fixture
def model(pair: CaseNames, tmp_path: Path) -> LoadedModel:
    return load_case(pair.read, tmp_path, pair.family, pair.settings)


def texts_of(words: NDArray[np.int64], visible: NDArray[np.int64]) -> Arrays:
    """Return one job of all texts: (1, n, N)."""
    return {"word_ids": words[None], "visible": visible[None]}


def test_images_have_the_recorded_vectors(pair: CaseNames, model: LoadedModel) -> None:
    outputs = model.forward(pixels_of(pair.images), {})
    assert are_units(outputs["embedding"])
    assert (cosines(outputs["embedding"], pair.read.outputs[pair.image_vector]) >= 0.99999).all()
    config: Any = model.model.config
    assert outputs["tokens"].tolist() == [[config.patches + 1] * 2] * len(pair.images)


def test_texts_have_the_recorded_vectors(pair: CaseNames, model: LoadedModel) -> None:
    outputs = model.forward(texts_of(*pair.texts), {})
    assert are_units(outputs["embedding"])
    assert (cosines(outputs["embedding"][0], pair.read.outputs[pair.text_vector]) >= 0.99999).all()


def test_rows_without_a_text_are_zeros_and_cost_nothing(pair: CaseNames, model: LoadedModel) -> None:
    """Jobs of 4 rows that hold 2 texts, 1 and none."""
    words, visible = pair.texts
    rows = np.full((3, 4, words.shape[1]), pair.padding)
    seen = np.zeros_like(rows)
    rows[0, 0], rows[0, 2], rows[1, 3] = words[:3]
    seen[0, 0], seen[0, 2], seen[1, 3] = visible[:3]
    computed: list[int] = []
    model.model.get_submodule("text").register_forward_hook(lambda module, inputs, output: computed.append(len(inputs[0])))
    vectors = model.forward({"word_ids": rows, "visible": seen}, {})["embedding"]
    expected = np.zeros_like(vectors)
    expected[0, 0], expected[0, 2], expected[1, 3] = model.forward(texts_of(words[:3], visible[:3]), {})["embedding"][0]
    assert np.array_equal(vectors, expected) and vectors.dtype == np.float32
    assert not model.forward({"word_ids": rows[2:], "visible": seen[2:]}, {})["embedding"].any()
    assert computed == [3, 3]


def test_a_text_does_not_depend_on_what_shares_its_batch(pair: CaseNames, model: LoadedModel) -> None:
    words, visible = pair.texts
    joint = model.forward(texts_of(words, visible), {})["embedding"][0]
    for row, vector in enumerate(joint):
        length = words.shape[1] if pair.family == "flip" else int(visible[row].sum())
        alone = model.forward(texts_of(words[row : row + 1, :length], visible[row : row + 1, :length]), {})["embedding"][0, 0]
        assert cosines(alone, vector) >= 0.999999
    assert (cosines(joint[:-1], joint[1:]) < 0.999).any()


@pytest.mark.parametrize("name", ["maws", "moco", "augreg"])
def test_texts_of_many_lengths_are_read_without_their_padding(name: str, tmp_path: Path) -> None:
    """Padding is at most a tenth of what is read, except in the last tokens of a pass."""
    pair, dice, count, longest = PAIRS[name], np.random.default_rng(0), 150, 30
    model = load_case(pair.read, tmp_path, pair.family, pair.settings)
    lengths = dice.integers(1, longest + 1, count)
    visible = (np.arange(longest) < lengths[:, None]).astype(np.int64)
    words = np.where(visible, dice.integers(5, 40, (count, longest)), pair.padding)
    read: list[int] = []
    model.model.get_submodule("text").register_forward_hook(lambda module, inputs, output: read.append(inputs[0].numel()))
    joint = model.forward(texts_of(words, visible), {})["embedding"][0]
    assert sum(read) <= 1.1 * lengths.sum() and 1 < len(read) < longest
    alone = [
        model.forward(texts_of(words[row : row + 1, :n], visible[row : row + 1, :n]), {})["embedding"][0, 0]
        for row, n in enumerate(lengths)
    ]
    assert (cosines(joint, np.stack(alone)) >= 0.999999).all()


@pytest.mark.parametrize("merge", [(), MERGE], ids=str)
def test_an_image_does_not_depend_on_what_shares_its_batch(pair: CaseNames, model: LoadedModel, merge: tuple[int, ...]) -> None:
    arrays = random_pixels(4, model.spec.config["image_size"])
    joint = model.forward(arrays, {"merge": merge})["embedding"]
    for vector, image in zip(joint, arrays["pixels"], strict=True):
        assert cosines(model.forward({"pixels": image[None]}, {"merge": merge})["embedding"][0], vector) >= 0.999999


@pytest.mark.parametrize("name", LINEAR)
def test_tokens_go_through_the_head_of_the_image_tower(name: str, tmp_path: Path) -> None:
    pair = PAIRS[name]
    model = load_case(pair.read, tmp_path, pair.family, pair.settings)
    seen: list[Tensor] = []
    tower: Any = model.model.get_submodule("vision")
    tower.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    outputs = model.forward(pixels_of(pair.images), {"output": "tokens", "merge": MERGE})
    count, patches = len(pair.images), tower.config.patches
    merged = sum(before - after for before, after in steps(patches, MERGE))
    assert are_units(outputs["vectors"])
    assert outputs["sizes"].shape == (count, patches - merged) and outputs["owners"].shape == (count, patches)
    assert outputs["sizes"].sum(axis=1).tolist() == [patches] * count
    assert [np.bincount(o, minlength=patches - merged).tolist() for o in outputs["owners"]] == outputs["sizes"].tolist()
    weights = dict(model.model.named_parameters())
    matrix = weights["vision_projection"] if name == "maws" else weights["vision_projection.weight"].T
    assert (cosines(outputs["vectors"], seen[0][:, 1:] @ matrix) >= 0.999999).all()


def steps(tokens: int, merge: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Tokens before and after each block: at most half of them merge."""
    for r in merge:
        after = tokens - min(r, tokens // 2)
        yield tokens, after
        tokens = after


def test_a_space_has_one_pooling(pair: CaseNames, model: LoadedModel) -> None:
    architecture = architectures()[model.spec.architecture]
    ours = ("mean",) if pair.family == "flip" else ("cls",)
    assert architecture.pools(model.spec.config) == ours
    arrays = pixels_of(pair.images)
    assert np.array_equal(model.forward(arrays, {"pool": ours[0]})["embedding"], model.forward(arrays, {})["embedding"])
    other = {"mean": "cls", "cls": "mean"}[ours[0]]
    with pytest.raises(ValueError, match=f"pool: '{other}' is not offered by this model, which has {ours[0]}"):
        model.forward(arrays, {"pool": other})


def test_tokens_are_not_offered_behind_projector_with_batch_norm(tmp_path: Path) -> None:
    moco = PAIRS["moco"]
    model, cit = load_case(moco.read, tmp_path, moco.family, moco.settings), architectures()["cit"]
    assert [cit.token_vectors(config) for config in (model.spec.config, {}, {"tower": "augreg"})] == [False, False, True]
    with pytest.raises(ValueError, match="output: 'tokens' is not offered by this model"):
        model.forward(pixels_of(moco.images), {"output": "tokens"})


def test_the_scale_is_the_recorded_one(pair: CaseNames, model: LoadedModel) -> None:
    recorded = float(pair.read.outputs[pair.scale])
    assert float(model.model.scale()) == pytest.approx(1 / recorded if pair.family == "flip" else recorded, rel=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["maws", "augreg"])
def test_ids_below_padding_are_not_read(name: str, tmp_path: Path) -> None:
    pair = PAIRS[name]
    model, (words, visible) = load_case(pair.read, tmp_path, pair.family, pair.settings), pair.texts
    other = np.where(visible, words, 3)
    assert not np.array_equal(other, words)
    got, expected = (model.forward(texts_of(ids, visible), {})["embedding"] for ids in (other, words))
    assert (cosines(got, expected) >= 0.9999999).all()


def test_padding_of_flip_is_read(tmp_path: Path) -> None:
    """`visible` marks which rows are texts, and nothing else."""
    pair = PAIRS["flip"]
    model, (words, visible) = load_case(pair.read, tmp_path, pair.family, pair.settings), pair.texts
    assert (visible == 0).any()
    recorded = model.forward(texts_of(words, visible), {})["embedding"]
    assert np.array_equal(model.forward(texts_of(words, np.ones_like(visible)), {})["embedding"], recorded)
    zero_parameters(model, "text.token_embed.weight")
    assert (cosines(model.forward(texts_of(words, visible), {})["embedding"], recorded) < 0.999).any()


def test_a_projection_of_zeros_gives_no_unit_vector(pair: CaseNames, model: LoadedModel) -> None:
    parameters = dict(model.model.named_parameters())
    zero_parameters(model, *(name for name in parameters if name.startswith(("vision_projection", "text_projection"))))
    assert not model.forward(pixels_of(pair.images), {})["embedding"].any()
    assert not model.forward(texts_of(*pair.texts), {})["embedding"].any()


@pytest.mark.parametrize(
    ("name", "shape", "value", "message"),
    [
        ("maws", (1, 1, 4), 60, "word_ids: ids from 60 to 60 where the vocabulary has 0 to 59"),
        ("maws", (1, 1, 4), -1, "word_ids: ids from -1 to -1 where the vocabulary has 0 to 59"),
        ("maws", (1, 1, 513), 5, "texts of 513 word pieces where at most 512 are possible"),
        ("moco", (1, 1, 41), 5, "texts of 41 word pieces where at most 40 are possible"),
        ("flip", (1, 1, 11), 5, "texts of 11 word pieces where exactly 12 are needed"),
    ],
)
def test_texts_that_a_tower_cannot_read_are_refused(name: str, shape: tuple[int, ...], value: int, message: str, tmp_path: Path) -> None:
    pair = PAIRS[name]
    model, words = load_case(pair.read, tmp_path, pair.family, pair.settings), np.full(shape, value)
    with pytest.raises(ValueError, match=message):
        model.forward({"word_ids": words, "visible": np.ones_like(words)}, {})


def test_the_longest_text_has_positions(tmp_path: Path) -> None:
    for name, length in {"maws": 512, "moco": 40}.items():
        pair, folder = PAIRS[name], tmp_path / name
        folder.mkdir()
        words = np.full((1, 1, length), 5)
        model = load_case(pair.read, folder, pair.family, pair.settings)
        assert are_units(model.forward({"word_ids": words, "visible": np.ones_like(words)}, {})["embedding"])
