"""The model of a `tokenizer.json`: its pieces, their ids and its merges, checked and bounded
(`models.systems.image_text.tokenizer_file`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_PIECES = 1 << 20
"""Maximum number of pieces, of merges, and of ids. XLM-R has 250,002 pieces."""
MAX_PIECE_BYTES = 512
MAX_WORD_CHARACTERS = 256
"""Maximum number of characters of a word that WordPiece cuts: its time grows with their square."""

MODELS = ("WordPiece", "BPE", "Unigram", "WordLevel")

Json = Mapping[str, Any]


class TokenizerError(ValueError):
    """Error of a tokenizer's file that is not accepted; the message names the entry and says why."""


def _require_vocabulary(vocabulary: Any, kind: type[dict[str, Any]] | type[list[Any]], form: str) -> Any:
    if not isinstance(vocabulary, kind) or not vocabulary:
        raise TokenizerError(f"model.vocab: {form} is needed")
    check_count("model.vocab", len(vocabulary), MAX_PIECES, "pieces")
    return vocabulary


def read_ids(model: Json) -> Mapping[str, int]:
    """Return pieces and their ids. Raises TokenizerError."""
    kind = model.get("type")
    if kind not in MODELS:
        raise TokenizerError(f"model.type: {kind!r} is not accepted; accepted are {', '.join(MODELS)}")
    if kind == "Unigram":
        return _read_unigram(model)
    ids: dict[str, int] = _require_vocabulary(model.get("vocab"), dict, "an object {piece: id}")
    for piece, number in ids.items():
        check_piece("model.vocab", piece)
        check_id(f"model.vocab: {piece!r}", number)
    if len(set(ids.values())) != len(ids):
        raise TokenizerError("model.vocab: two pieces have the same id")
    if kind in ("WordPiece", "WordLevel") and str(model.get("unk_token")) not in ids:
        raise TokenizerError(f"model.unk_token: {model.get('unk_token')!r} is not in model.vocab")
    if kind == "WordPiece":
        max_characters: Any = model.get("max_input_chars_per_word", 100)
        if not _is_integer(max_characters) or not 0 < max_characters <= MAX_WORD_CHARACTERS:
            raise TokenizerError(f"model.max_input_chars_per_word: {max_characters!r} must be an integer from 1 to {MAX_WORD_CHARACTERS}")
        check_piece("model.continuing_subword_prefix", model.get("continuing_subword_prefix", "##"), allow_empty=True)
    if kind == "BPE":
        _check_bpe(model)
    return ids


def _read_unigram(model: Json) -> dict[str, int]:
    vocabulary: list[Any] = _require_vocabulary(model.get("vocab"), list, "a list of [piece, score]")
    for number, entry in enumerate(vocabulary):
        if not isinstance(entry, list) or len(entry) != 2 or isinstance(entry[1], bool) or not isinstance(entry[1], int | float):
            raise TokenizerError(f"model.vocab.{number}: [piece, score] is needed")
        if not -1e30 < entry[1] < 1e30:
            raise TokenizerError(f"model.vocab.{number}: score {entry[1]!r} is beyond what float32 can sum")
        check_piece(f"model.vocab.{number}", entry[0])
    unknown: Any = model.get("unk_id")
    if not _is_integer(unknown) or not 0 <= unknown < len(vocabulary):
        raise TokenizerError(f"model.unk_id: {unknown!r} is not the index of a piece")
    ids = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    if len(ids) != len(vocabulary):
        raise TokenizerError("model.vocab: two pieces are the same")
    return ids


def _check_bpe(model: Json) -> None:
    if model.get("dropout"):
        raise TokenizerError(f"model.dropout: {model['dropout']!r} would cut a text in another way each time; null is needed")
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise TokenizerError("model.merges: a list is needed")
    check_count("model.merges", len(merges), MAX_PIECES, "merges")
    for number, merge in enumerate(merges):
        parts = merge if isinstance(merge, list) else [merge]
        for part in parts:
            check_piece(f"model.merges.{number}", part, max_bytes=2 * MAX_PIECE_BYTES + 1)
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        check_piece(f"model.{name}", model.get(name) or "", allow_empty=True)


def check_piece(path: str, piece: Any, *, max_bytes: int = MAX_PIECE_BYTES, allow_empty: bool = False) -> None:
    if not isinstance(piece, str) or not (piece or allow_empty):
        raise TokenizerError(f"{path}: {str(piece)[:80]!r} must be a text that is not empty")
    try:
        size = len(piece.encode())
    except UnicodeEncodeError as error:
        raise TokenizerError(f"{path}: {piece[:80]!r} has a lone surrogate") from error
    if size > max_bytes:
        raise TokenizerError(f"{path}: {piece[:40]!r}… has {size} bytes, more than {max_bytes}")


def check_id(path: str, number: Any) -> None:
    if not _is_integer(number) or not 0 <= number < MAX_PIECES:
        raise TokenizerError(f"{path}: id {number!r} must be an integer from 0 to {MAX_PIECES - 1}")


def _is_integer(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def check_count(path: str, count: int, limit: int, noun: str) -> None:
    if count > limit:
        raise TokenizerError(f"{path}: {count:,} {noun} are more than {limit:,}")
