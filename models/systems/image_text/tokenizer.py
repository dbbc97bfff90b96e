"""Texts → token ids, the input of the text towers of pairs, and the conventions of each pair. Imports no torch.

The tokenizer is the bundle's `tokenizer.json`, run by the library `tokenizers`; files with a character map, which are SentencePiece's, are
run by `models.systems.image_text.sentencepiece`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import punctuation
from typing import Any, Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray

from models.bundle import SPEC_FILE, TOKENIZER_FILE, Bundle, BundleError
from models.bundle_files import digest_mismatch
from models.systems.image_text.sentencepiece import CharacterMapError, Unigram, read_character_map
from models.systems.image_text.tokenizer_file import MAX_FILE_BYTES, TokenizerFile, read_tokenizer
from models.systems.image_text.tokenizer_vocabulary import TokenizerError


@dataclass(frozen=True)
class TextConvention:
    """Properties of an architecture's texts that the authors' code has, and no checkpoint."""

    positions: Callable[[Mapping[str, Any]], int]
    """Function of a config → number of word pieces that the network has positions for."""
    length: int | None
    """Number of word pieces at which the authors truncate, special ones included; None: the number of positions."""
    padding: Literal["longest", "length"] = "longest"
    empty: bool = True
    special: bool = True
    """Whether special tokens frame a text."""
    has_prefix: bool = True
    """Whether one of them comes before the text."""
    lowercases: bool = False
    """Whether training texts were lowercased, which the tokenizer's file may omit."""
    scores: Literal["softmax", "sigmoid"] = "softmax"


TEXT_CONVENTIONS: Mapping[str, TextConvention] = {
    # XLM-R's positions start after that of padding
    "maws_clip": TextConvention(lambda config: int(config["positions"]) - int(config["padding"]) - 1, 102),
    "cit": TextConvention(lambda config: int(config["positions"]), 32),
    "clip": TextConvention(lambda config: int(config["text_length"]), None),
    "flip": TextConvention(lambda config: int(config["text_length"]), None, padding="length", empty=False, special=False),
    "siglip": TextConvention(
        lambda config: int(config["text_length"]), None, padding="length", has_prefix=False, lowercases=True, scores="sigmoid"
    ),
}
"""Conventions by architecture. MAWS truncates to 100 pieces and adds two; CiT has 32 including both; FLIP 32 without any, and padding;
SigLIP 64 with one after the text, and padding."""


def position_count(architecture: str, config: Mapping[str, Any]) -> int:
    """Return the number of positions of a pair's text tower. Raises ValueError with a sentence."""
    convention = TEXT_CONVENTIONS.get(architecture)
    if convention is None:
        raise ValueError(f"architecture {architecture} has no text tower; {', '.join(TEXT_CONVENTIONS)} have one")
    try:
        return convention.positions(config)
    except KeyError as error:
        raise ValueError(f"config: {error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"config: {error}") from error


MAX_SPARE_ROWS = 128
"""Maximum number of rows of an embedding table without tokens: FLIP's has one, others are padded to a round number."""

SEQUENTIAL_TEXTS = 4
"""Number of texts up to which they are cut sequentially: waking the library's threads takes longer, most of all under load."""

_NO_PUNCTUATION = str.maketrans("", "", punctuation)

CutFn = Callable[[Sequence[str], int], list[list[int]]]
"""Function of texts and a number of pieces → ids of each text's pieces, without special tokens: all, or more than that number."""


@dataclass(frozen=True)
class TokenizedTexts:
    tokens: NDArray[np.int64]
    """(n, N): ids, special tokens included, then padding. N: the longest text, or `Tokenizer.length` if that is fixed."""
    visible: NDArray[np.int64]
    """(n, N): 1 for tokens, 0 for padding."""
    truncated: NDArray[np.bool_]
    """(n,): whether the text was longer than `Tokenizer.length`."""


@dataclass(frozen=True)
class Tokenizer:
    """A pair's tokenizer. Any number of threads may use it; a text's ids do not depend on the others of its batch."""

    cut: CutFn
    prefix_ids: tuple[int, ...]
    """Ids of the special tokens before a text."""
    suffix_ids: tuple[int, ...]
    """Ids of the special tokens after a text."""
    length: int
    """Maximum number of word pieces, special ones included."""
    is_fixed_length: bool
    """Whether texts are padded to `length`; otherwise to the longest of their batch."""
    padding: int

    @staticmethod
    def open(bundle: Bundle) -> Tokenizer:
        """Check the bundle's `tokenizer.json`, its SHA-256 too, and load it. Raises BundleError."""
        spec, path = bundle.spec, bundle.path / TOKENIZER_FILE
        if spec.text is None:
            raise BundleError(f"{spec.id}: has no tokenizer; `opsin bundles tokenizer {spec.name} FILE` adds one")
        problem = digest_mismatch(path, spec.files[TOKENIZER_FILE], SPEC_FILE)
        if problem:
            raise BundleError(problem)
        try:
            positions, padding = position_count(spec.architecture, spec.config), int(spec.config.get("padding", 0))
        except (TypeError, ValueError) as error:
            raise BundleError(f"{spec.id}: {error}") from error
        if spec.text.length > positions:
            raise BundleError(f"{spec.id}: text.length {spec.text.length} is more than the {positions} positions of the network")
        try:
            file = read_file(path)
            check_fit(file, spec.config.get("vocabulary"))
            return Tokenizer.from_file(file, length=spec.text.length, is_fixed_length=spec.text.padding == "length", padding=padding)
        except TokenizerError as error:
            raise BundleError(f"{path}: {error}") from error

    @staticmethod
    def from_file(file: TokenizerFile, *, length: int, is_fixed_length: bool, padding: int) -> Tokenizer:
        """Create a tokenizer from a checked file. Raises TokenizerError."""
        if len(file.prefix_ids) + len(file.suffix_ids) >= length:
            special = len(file.prefix_ids) + len(file.suffix_ids)
            raise TokenizerError(f"post_processor: {special} special tokens leave no room in texts of {length} word pieces")
        cut = _make_library_cut(file) if file.character_map is None else _make_sentencepiece_cut(file, file.character_map)
        return Tokenizer(cut, file.prefix_ids, file.suffix_ids, length, is_fixed_length, padding)

    def encode(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenize valid Unicode texts of any length. An empty text has special tokens alone."""
        max_pieces = self.length - len(self.prefix_ids) - len(self.suffix_ids)
        pieces = self.cut(texts, max_pieces)
        rows = [[*self.prefix_ids, *ids[:max_pieces], *self.suffix_ids] for ids in pieces]
        width = self.length if self.is_fixed_length else max(map(len, rows), default=0)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        visible = np.arange(width) < lengths[:, None]
        tokens = np.full((len(rows), width), self.padding, np.int64)
        tokens[visible] = np.fromiter((number for row in rows for number in row), np.int64, int(lengths.sum()))
        truncated = np.fromiter((len(ids) > max_pieces for ids in pieces), np.bool_, len(pieces))
        return TokenizedTexts(tokens, visible.astype(np.int64), truncated)


def has_known_piece(bundle: Bundle, texts: Sequence[str]) -> NDArray[np.bool_]:
    """Return True for texts with a piece in the vocabulary: bool (n,). All others have the same tokens, so the same vector. Raises
    BundleError."""
    tokenizer = Tokenizer.open(bundle)
    silent_ids = read_file(bundle.path / TOKENIZER_FILE).silent_ids
    max_pieces = tokenizer.length - len(tokenizer.prefix_ids) - len(tokenizer.suffix_ids)
    pieces = tokenizer.cut(texts, max_pieces)
    return np.fromiter((not silent_ids.issuperset(ids[:max_pieces]) for ids in pieces), np.bool_, len(pieces))


def read_file(path: Path) -> TokenizerFile:
    """Read and check a `tokenizer.json`. Raises TokenizerError."""
    try:
        with path.open("rb") as file:
            return read_tokenizer(file.read(MAX_FILE_BYTES + 1))
    except OSError as error:
        raise TokenizerError(f"cannot be read ({error.strerror})") from error


def check_fit(file: TokenizerFile, vocabulary: object) -> None:
    """Check that a tokenizer has the network's tokens. vocabulary: rows of the network's table. Raises TokenizerError."""
    if not isinstance(vocabulary, int) or file.vocabulary > vocabulary or file.vocabulary < vocabulary - MAX_SPARE_ROWS:
        raise TokenizerError(
            f"model.vocab: the tokenizer has {file.vocabulary:,} tokens, and the network's table {vocabulary} rows; "
            f"as many tokens are needed, or at most {MAX_SPARE_ROWS} fewer: is it the tokenizer of this pair?"
        )


def _make_library_cut(file: TokenizerFile) -> CutFn:
    try:
        # without special tokens: they are added after truncation
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**file.to_library_json(), "post_processor": None}))
        tokenizer.encode_batch_fast(["a"])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises Exception, and BaseException if it panics
        raise TokenizerError(f"the library tokenizers does not accept it ({error})") from error

    def cut(texts: Sequence[str], max_pieces: int) -> list[list[int]]:
        if len(texts) <= SEQUENTIAL_TEXTS:
            return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return cut


def _make_sentencepiece_cut(file: TokenizerFile, character_map: bytes) -> CutFn:
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
    prepare: Callable[[str], str] = _clean if file.cleans else str
    return lambda texts, max_pieces: [unigram.encode(normaliser.normalise(prepare(text)), max_pieces) for text in texts]


def _clean(text: str) -> str:
    """Normalise a text as `tokenizer_file.CLEANING` does."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())
