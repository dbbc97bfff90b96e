"""The model of a `tokenizer.json`: its pieces, their ids and its merges, checked and bounded
(`models.systems.image_text.tokenizer_file`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_PIECES = 1 << 20
"""Number of pieces, of merges, and of ids. XLM-R has 250,002 pieces."""
LONGEST_PIECE = 512
"""Bytes."""
LONGEST_WORD = 256
"""Characters of a word that WordPiece cuts: its work grows with their square."""

MODELS = ("WordPiece", "BPE", "Unigram", "WordLevel")

Json = Mapping[str, Any]


class TokenizerError(ValueError):
    """A tokenizer's file is not taken; the message says which entry of it, and why."""


def _filled(vocabulary: Any, kind: type[dict[str, Any]] | type[list[Any]], form: str) -> Any:
    if not isinstance(vocabulary, kind) or not vocabulary:
        raise TokenizerError(f"model.vocab: {form} is needed")
    at_most("model.vocab", len(vocabulary), MOST_PIECES, "pieces")
    return vocabulary


def ids_of(model: Json) -> Mapping[str, int]:
    """Pieces and their ids."""
    kind = model.get("type")
    if kind not in MODELS:
        raise TokenizerError(f"model.type: {kind!r} is not taken; taken are {', '.join(MODELS)}")
    if kind == "Unigram":
        return _unigram(model)
    ids: dict[str, int] = _filled(model.get("vocab"), dict, "an object {piece: id}")
    for piece, number in ids.items():
        check_piece("model.vocab", piece)
        check_id(f"model.vocab: {piece!r}", number)
    if len(set(ids.values())) != len(ids):
        raise TokenizerError("model.vocab: two pieces have the same id")
    if kind in ("WordPiece", "WordLevel") and str(model.get("unk_token")) not in ids:
        raise TokenizerError(f"model.unk_token: {model.get('unk_token')!r} is not in model.vocab")
    if kind == "WordPiece":
        longest: Any = model.get("max_input_chars_per_word", 100)
        if not _whole(longest) or not 0 < longest <= LONGEST_WORD:
            raise TokenizerError(f"model.max_input_chars_per_word: {longest!r} must be an integer from 1 to {LONGEST_WORD}")
        check_piece("model.continuing_subword_prefix", model.get("continuing_subword_prefix", "##"), empty=True)
    if kind == "BPE":
        _bpe(model)
    return ids


def _unigram(model: Json) -> dict[str, int]:
    vocabulary: list[Any] = _filled(model.get("vocab"), list, "a list of [piece, score]")
    for number, entry in enumerate(vocabulary):
        if not isinstance(entry, list) or len(entry) != 2 or isinstance(entry[1], bool) or not isinstance(entry[1], int | float):
            raise TokenizerError(f"model.vocab.{number}: [piece, score] is needed")
        if not -1e30 < entry[1] < 1e30:
            raise TokenizerError(f"model.vocab.{number}: score {entry[1]!r} is beyond what float32 can sum")
        check_piece(f"model.vocab.{number}", entry[0])
    unknown: Any = model.get("unk_id")
    if not _whole(unknown) or not 0 <= unknown < len(vocabulary):
        raise TokenizerError(f"model.unk_id: {unknown!r} is no number of a piece")
    ids = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    if len(ids) != len(vocabulary):
        raise TokenizerError("model.vocab: two pieces are the same")
    return ids


def _bpe(model: Json) -> None:
    if model.get("dropout"):
        raise TokenizerError(f"model.dropout: {model['dropout']!r} would cut a text in another way each time; null is needed")
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise TokenizerError("model.merges: a list is needed")
    at_most("model.merges", len(merges), MOST_PIECES, "merges")
    for number, merge in enumerate(merges):
        parts = merge if isinstance(merge, list) else [merge]
        for part in parts:
            check_piece(f"model.merges.{number}", part, longest=2 * LONGEST_PIECE + 1)
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        check_piece(f"model.{name}", model.get(name) or "", empty=True)


def check_piece(where: str, piece: Any, *, longest: int = LONGEST_PIECE, empty: bool = False) -> None:
    if not isinstance(piece, str) or not (piece or empty):
        raise TokenizerError(f"{where}: {str(piece)[:80]!r} must be a text that is not empty")
    try:
        size = len(piece.encode())
    except UnicodeEncodeError as error:
        raise TokenizerError(f"{where}: {piece[:80]!r} has a lone surrogate") from error
    if size > longest:
        raise TokenizerError(f"{where}: {piece[:40]!r}… has {size} bytes, more than {longest}")


def check_id(where: str, number: Any) -> None:
    if not _whole(number) or not 0 <= number < MOST_PIECES:
        raise TokenizerError(f"{where}: id {number!r} must be an integer from 0 to {MOST_PIECES - 1}")


def _whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def at_most(where: str, count: int, most: int, what: str) -> None:
    if count > most:
        raise TokenizerError(f"{where}: {count:,} {what} are more than {most:,}")
