"""Texts become the same ids as with the published tokenizers: SentencePiece for MAWS, transformers' for CiT, FLIP and CLIP."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from transformers import CLIPTokenizer
from transformers.models.bert.tokenization_bert import BertTokenizer
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from models import bundle
from models.bundle import TOKENIZER_FILE, Bundle, BundleError, BundleSpec
from models.bundle_schema import FileDigest, TextSpec
from models.systems.image_text.tokenizer import Tokenizer, has_known_piece
from models.systems.image_text.tokenizer_conversion import read_vocabulary
from tests.support import vocabularies
from tests.support.vocabularies import HARD, strings

COUNT, MANY = 2_000, 10_000


def pair(folder: Path, source: Path, *, special: bool = True, pad: int = 0, config: dict[str, Any] | None = None, **text: Any) -> Bundle:
    """Write a bundle with this tokenizer and no weights. pad: the network's padding; config: all its fields; text: of the section
    `text`."""
    file = read_vocabulary(source, special=special)
    (folder / "weights").write_bytes(b"")
    (folder / "words").write_bytes(file.to_bytes())
    nothing = FileDigest(sha256="0" * 64, bytes=0)
    spec = BundleSpec(
        name="pair",
        version="1",
        task="zero-shot",
        architecture="maws_clip",
        config={"vocabulary": file.vocabulary, "padding": pad, "positions": 5000} if config is None else config,
        license="CC0-1.0",
        text=TextSpec(**{"length": 4096, "scale": 10.0, **text}),
        weights=nothing,
        files={TOKENIZER_FILE: nothing},
    )
    return bundle.write(folder / "bundles", spec, folder / "weights", files={TOKENIZER_FILE: folder / "words"}, overwrite=True)


def rows(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text without padding, asked for in batches of 64."""
    found = []
    for start in range(0, len(texts), 64):
        encoded = tokenizer.encode(texts[start : start + 64])
        found += [row[seen == 1].tolist() for row, seen in zip(encoded.tokens, encoded.visible, strict=True)]
    return found


def differing(texts: Sequence[str], found: Sequence[list[int]], expected: Sequence[list[int]]) -> list[str]:
    assert len(texts) == len(found) == len(expected)
    return [text for text, ours, other in zip(texts, found, expected, strict=True) if ours != other]


@pytest.fixture(scope="module", params=[COUNT, pytest.param(MANY, marks=pytest.mark.slow)])
def texts(request: pytest.FixtureRequest) -> list[str]:
    return [*HARD, *strings(request.param - len(HARD))]


@pytest.fixture(scope="module")
def xlmr_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vocabularies.sentencepiece_model(tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture(scope="module")
def bert_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vocabularies.bert(tmp_path_factory.mktemp("bert"))


def test_xlmr_has_the_ids_of_sentencepiece_one_higher(texts: list[str], xlmr_model: Path, tmp_path: Path) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(xlmr_model))
    moved = {0: 3, 1: 0, 2: 2}  # <unk>, <s>, </s>; <pad> is new as 1
    expected = [[0, *(moved.get(number, number + 1) for number in ids), 2] for ids in reference.encode(texts)]
    found = rows(Tokenizer.open(pair(tmp_path, xlmr_model, pad=1)), texts)
    assert differing(texts, found, expected) == []
    assert len({number for row in found for number in row}) > 1500  # the strings use much of the vocabulary


def test_siglip_ids_equal_sentencepiece_for_lower_case(texts: list[str], tmp_path: Path) -> None:
    model = vocabularies.siglip(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model))
    cleaned = [
        re.sub(r"\s+", " ", "".join(letter for letter in text.lower() if letter not in string.punctuation)).strip() for text in texts
    ]
    expected = [[*ids, 1] for ids in reference.encode(cleaned)]
    config = {"vocabulary": reference.get_piece_size(), "padding": 1, "positions": 5000}
    assert differing(texts, rows(Tokenizer.open(pair(tmp_path, tmp_path, config=config)), texts), expected) == []


RECENT = frozenset("\u0c04\u0c3c\u0c77\u0c84\u0d3b\u0d3c\u0eba\u180f\u1885\u1886\U0010ffff")
"""Marks and punctuation that Unicode has since version 9 or later, and a code point that is not a character: the library's tables are
older than Python's."""


def test_bert_has_the_ids_of_transformers(texts: list[str], bert_vocabulary: Path, tmp_path: Path) -> None:
    """The reference is both of its tokenizers: the one that CiT's code uses, and the older one in Python, which does not use the
    library."""
    found = rows(Tokenizer.open(pair(tmp_path, bert_vocabulary)), texts)
    assert differing(texts, found, BertTokenizer(vocab=str(bert_vocabulary))(texts)["input_ids"]) == []
    older = BertTokenizerLegacy(vocab_file=str(bert_vocabulary))
    others = differing(texts, found, [older(text)["input_ids"] for text in texts])
    assert [text for text in others if not RECENT & set(text)] == []
    assert sum(not RECENT & set(text) for text in texts) > 0.9 * len(texts)


def test_clip_has_the_ids_of_transformers(texts: list[str], tmp_path: Path) -> None:
    folder = vocabularies.clip(tmp_path)
    reference = CLIPTokenizer.from_pretrained(str(folder))
    found = rows(Tokenizer.open(pair(tmp_path, folder)), texts)
    assert differing(texts, found, reference(texts)["input_ids"]) == []


def test_flip_reads_pieces_alone_and_always_as_many(bert_vocabulary: Path, tmp_path: Path) -> None:
    framed = Tokenizer.open(pair(tmp_path, bert_vocabulary))
    bare = Tokenizer.open(pair(tmp_path, bert_vocabulary, special=False, length=8, padding="length", empty=False))
    encoded = bare.encode(["a red car", "", "[SEP] [CLS]", "a photo of the red dog on the sofa"])
    assert (encoded.tokens.shape, encoded.tokens.dtype, encoded.visible.dtype) == ((4, 8), np.int64, np.int64)
    inner = rows(framed, ["a red car"])[0][1:-1]
    assert encoded.tokens[0].tolist() == [*inner, *[0] * (8 - len(inner))]
    assert not encoded.tokens[1].any() and not encoded.visible[1].any()
    assert not set(encoded.tokens[2].tolist()) & {2, 3}  # what looks like [CLS] and [SEP] is read as text
    assert encoded.truncated.tolist() == [False, False, False, True]


def test_texts_are_cut_before_their_special_tokens_come(xlmr_model: Path, tmp_path: Path) -> None:
    """MAWS: 100 pieces, then <s> and </s>."""
    full = Tokenizer.open(pair(tmp_path, xlmr_model, pad=1))
    cut = Tokenizer.open(pair(tmp_path, xlmr_model, pad=1, length=102))
    texts = ["a red car", "the dog sleeps " * 60, "𒀀" * 3000, ""]
    encoded = cut.encode(texts)
    assert encoded.truncated.tolist() == [False, True, False, False]  # unknown characters in a row are one piece
    assert encoded.tokens.shape == (4, 102)
    long = rows(full, texts)[1]
    assert len(long) > 110
    assert encoded.tokens[1].tolist() == [*long[:101], 2]
    assert encoded.tokens[3].tolist() == [0, 2, *[1] * 100]
    assert encoded.visible.sum(axis=1).tolist() == [len(rows(full, texts)[0]), 102, len(rows(full, texts)[2]), 2]


@pytest.mark.parametrize("kind", ["bert", "clip", "xlmr"])
def test_ids_depend_neither_on_the_batch_nor_on_other_threads(kind: str, xlmr_model: Path, bert_vocabulary: Path, tmp_path: Path) -> None:
    source = {"bert": lambda: bert_vocabulary, "clip": lambda: vocabularies.clip(tmp_path), "xlmr": lambda: xlmr_model}[kind]()
    tokenizer = Tokenizer.open(pair(tmp_path, source))
    texts = strings(400, seed=3)
    alone = [tokenizer.encode([text]).tokens[0].tolist() for text in texts]
    with ThreadPoolExecutor(4) as threads:
        batches = [texts[start::8] for start in range(8)] * 4
        found = list(threads.map(lambda batch: rows(tokenizer, batch), batches))
    assert found == [alone[start::8] for start in range(8)] * 4


def test_joiners_and_spaces_without_width_make_no_text_known() -> None:
    """The starter has pieces for them, from names in languages that need them."""
    words = bundle.read(Path(__file__).parents[4] / "bundles" / "words" / "1.1.0")
    read = has_known_piece(words, ["👩\u200d🚀", "👨\u200d🍳", "\u200b", "हिन्\u200dदी", "a\u200b"])
    assert read.tolist() == [False, False, False, True, True]


def test_no_texts_are_no_rows(bert_vocabulary: Path, tmp_path: Path) -> None:
    encoded = Tokenizer.open(pair(tmp_path, bert_vocabulary)).encode([])
    assert (encoded.tokens.shape, encoded.visible.shape, encoded.truncated.shape) == ((0, 0), (0, 0), (0,))


def test_a_tokeniser_that_is_not_the_bundles_is_not_opened(bert_vocabulary: Path, tmp_path: Path) -> None:
    made = pair(tmp_path, bert_vocabulary)
    file = made.path / TOKENIZER_FILE
    file.write_bytes(file.read_bytes().replace(b"lowercase", b"LOWERCASE"))
    with pytest.raises(BundleError, match=r"tokenizer\.json: its SHA-256 is not the one in bundle\.json"):
        Tokenizer.open(made)
    for config, sentence in (
        ({"positions": 4097, "padding": 1}, "pair@1: text.length 4096 is more than the 4095 positions of the network"),
        ({"positions": "many", "padding": 1}, "pair@1: config: invalid literal for int"),
        ({"padding": 1}, "pair@1: config: positions is missing"),
    ):
        with pytest.raises(BundleError, match=sentence):
            Tokenizer.open(pair(tmp_path, bert_vocabulary, config=config))
    without = Bundle(path=made.path, spec=made.spec.model_copy(update={"text": None}))
    with pytest.raises(BundleError, match="pair@1: has no tokenizer; `opsin bundles tokenizer pair FILE` adds one"):
        Tokenizer.open(without)


def test_a_tokeniser_of_another_network_is_not_opened(bert_vocabulary: Path, tmp_path: Path) -> None:
    made = pair(tmp_path, bert_vocabulary)
    count = made.spec.config["vocabulary"]
    for rows_of_the_network, fits in ((count - 1, False), (count + 128, True), (count + 129, False)):
        changed = made.spec.model_copy(update={"config": {**made.spec.config, "vocabulary": rows_of_the_network}})
        if fits:
            Tokenizer.open(Bundle(path=made.path, spec=changed))
            continue
        with pytest.raises(BundleError, match=f"has {count:,} tokens, and the network's table {rows_of_the_network} rows"):
            Tokenizer.open(Bundle(path=made.path, spec=changed))
