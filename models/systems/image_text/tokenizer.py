"""Texts → token ids, as the text towers of pairs read them. Imports no torch.

The tokenizer is the bundle's `tokenizer.json`, run by the library `tokenizers`; files with a character map, which are SentencePiece's, are
run by `models.systems.image_text.unigram`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import punctuation

import numpy as np
import tokenizers
from numpy.typing import NDArray

from models.bundle import SPEC_FILE, TOKENIZER_FILE, Bundle, BundleError
from models.bundle_files import digest_mismatch
from models.systems.image_text.sentencepiece_normalizer import CharacterMapError, read_character_map
from models.systems.image_text.text_conventions import positions
from models.systems.image_text.tokenizer_file import MOST_BYTES, TokenizerFile, read_tokenizer
from models.systems.image_text.tokenizer_vocabulary import TokenizerError
from models.systems.image_text.unigram import Unigram

SPARE_ROWS = 128
"""Rows of a table of embeddings that no token has: FLIP's has one, others are filled up to a round number."""

FEW = 4
"""Texts that are cut one after another: to wake the library's threads takes longer, and most of all beside other work."""

_NO_PUNCTUATION = str.maketrans("", "", punctuation)

Cut = Callable[[Sequence[str], int], list[list[int]]]
"""Texts, and a number of pieces → ids of each text's pieces, without special tokens: all, or more than that number."""


@dataclass(frozen=True)
class Encoded:
    tokens: NDArray[np.int64]
    """(n, N): ids, special tokens among them, then padding. N: the longest text, or `Tokenizer.length` if that is fixed."""
    visible: NDArray[np.int64]
    """(n, N): 1 for tokens, 0 for padding."""
    truncated: NDArray[np.bool_]
    """(n,): whether the text was longer than `Tokenizer.length`."""


@dataclass(frozen=True)
class Tokenizer:
    """A pair's tokenizer. Any number of threads may use it; a text's ids do not depend on the others of its batch."""

    cut: Cut
    before: tuple[int, ...]
    """Ids of the special tokens that begin a text."""
    after: tuple[int, ...]
    """Ids of those that end it."""
    length: int
    """Maximum number of word pieces, special ones included."""
    fixed: bool
    """Whether texts are padded to `length`; otherwise to the longest of their batch."""
    padding: int
    """Id that fills up short texts."""

    @staticmethod
    def open(bundle: Bundle) -> Tokenizer:
        """Check the bundle's `tokenizer.json`, its SHA-256 too, and load it. Raises BundleError."""
        spec, path = bundle.spec, bundle.path / TOKENIZER_FILE
        if spec.text is None:
            raise BundleError(f"{spec.id}: has no tokenizer and reads no texts; `opsin bundles tokenizer {spec.name} FILE` adds one")
        problem = digest_mismatch(path, spec.files[TOKENIZER_FILE], SPEC_FILE)
        if problem:
            raise BundleError(problem)
        try:
            places, padding = positions(spec.architecture, spec.config), int(spec.config.get("padding", 0))
        except (TypeError, ValueError) as error:
            raise BundleError(f"{spec.id}: {error}") from error
        if spec.text.length > places:
            raise BundleError(f"{spec.id}: text.length {spec.text.length} is more than the {places} positions of the network")
        try:
            file = read_file(path)
            check_fit(file, spec.config.get("vocabulary"))
            return Tokenizer.of(file, length=spec.text.length, fixed=spec.text.padding == "length", padding=padding)
        except TokenizerError as error:
            raise BundleError(f"{path}: {error}") from error

    @staticmethod
    def of(file: TokenizerFile, *, length: int, fixed: bool, padding: int) -> Tokenizer:
        """Raises TokenizerError."""
        if len(file.before) + len(file.after) >= length:
            special = len(file.before) + len(file.after)
            raise TokenizerError(f"post_processor: {special} special tokens leave no place in texts of {length} word pieces")
        cut = _library(file) if file.character_map is None else _sentencepiece(file, file.character_map)
        return Tokenizer(cut, file.before, file.after, length, fixed, padding)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """texts: any length, valid Unicode. An empty text has special tokens alone."""
        most = self.length - len(self.before) - len(self.after)
        pieces = self.cut(texts, most)
        rows = [[*self.before, *ids[:most], *self.after] for ids in pieces]
        width = self.length if self.fixed else max(map(len, rows), default=0)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        visible = np.arange(width) < lengths[:, None]
        tokens = np.full((len(rows), width), self.padding, np.int64)
        tokens[visible] = np.fromiter((number for row in rows for number in row), np.int64, int(lengths.sum()))
        truncated = np.fromiter((len(ids) > most for ids in pieces), np.bool_, len(pieces))
        return Encoded(tokens, visible.astype(np.int64), truncated)


def known(bundle: Bundle, texts: Sequence[str]) -> NDArray[np.bool_]:
    """(n,): whether a piece of the text is in the vocabulary. All others have the same tokens, so the same vector. Raises BundleError."""
    tokenizer = Tokenizer.open(bundle)
    speechless = read_file(bundle.path / TOKENIZER_FILE).speechless
    most = tokenizer.length - len(tokenizer.before) - len(tokenizer.after)
    pieces = tokenizer.cut(texts, most)
    return np.fromiter((not speechless.issuperset(ids[:most]) for ids in pieces), np.bool_, len(pieces))


def read_file(path: Path) -> TokenizerFile:
    """A `tokenizer.json` on disk, checked. Raises TokenizerError."""
    try:
        with path.open("rb") as file:
            return read_tokenizer(file.read(MOST_BYTES + 1))
    except OSError as error:
        raise TokenizerError(f"cannot be read ({error.strerror})") from error


def check_fit(file: TokenizerFile, vocabulary: object) -> None:
    """Raises TokenizerError for a tokenizer with other tokens than the network's. vocabulary: rows of the network's table."""
    if not isinstance(vocabulary, int) or file.vocabulary > vocabulary or file.vocabulary < vocabulary - SPARE_ROWS:
        raise TokenizerError(
            f"model.vocab: the tokenizer has {file.vocabulary:,} tokens, and the network's table {vocabulary} rows; "
            f"as many tokens are needed, or at most {SPARE_ROWS} fewer: is it the tokenizer of this pair?"
        )


def _library(file: TokenizerFile) -> Cut:
    try:
        # no special tokens in the library's hands: they are added after the cut
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**file.content, "post_processor": None}))
        tokenizer.encode_batch_fast(["a"])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises Exception, and where it panics BaseException
        raise TokenizerError(f"the library tokenizers does not take it ({error})") from error

    def cut(texts: Sequence[str], most: int) -> list[list[int]]:
        if len(texts) <= FEW:
            return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return cut


def _sentencepiece(file: TokenizerFile, character_map: bytes) -> Cut:
    special = {token["content"] for token in file.added_tokens}
    unknown = file.model["unk_id"]
    vocabulary = enumerate(file.model["vocab"])
    pieces = {piece: (number, score) for number, (piece, score) in vocabulary if piece not in special and number != unknown}
    try:
        normaliser, unigram = read_character_map(character_map), Unigram(pieces, unknown)
    except CharacterMapError as error:
        raise TokenizerError(f"normalizer.precompiled_charsmap: {error}") from error
    except ValueError as error:
        raise TokenizerError(f"model.vocab: {error}") from error
    prepared: Callable[[str], str] = _cleaned if file.cleans else str
    return lambda texts, most: [unigram.encode(normaliser.normalise(prepared(text)), most) for text in texts]


def _cleaned(text: str) -> str:
    """`tokenizer_file.CLEANING`."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())
