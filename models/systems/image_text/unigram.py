"""SentencePiece's unigram model (arXiv 1808.06226): a text is cut into the pieces whose probabilities have the greatest product.

The library `tokenizers` sums the logarithms in float64, SentencePiece in float32: texts such as "aaaaaaa", whose pieces may come in several
orders, have equal sums in one and unequal ones in the other. To get the same ids, sums are rounded here as SentencePiece does.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from models.systems.image_text.sentencepiece_normalizer import SPACE

UNKNOWN_PENALTY = 10.0
"""Penalty subtracted from the lowest score for a character without a piece."""

_SPLIT = float(2**29 + 1)
"""Factor that rounds float64 to float32 (Veltkamp's splitting)."""
_OPENING_CHARACTERS = 3
"""Number of first characters of a piece by which the maximum length of pieces is stored."""


class Unigram:
    """A unigram model. Immutable: any number of threads may use it."""

    def __init__(self, pieces: Mapping[str, tuple[int, float]], unknown: int) -> None:
        """Create a model. pieces: text → id and score. unknown: the id of characters without a piece.

        Raises ValueError for a piece that extends into a second word: words are cut one by one.
        """
        crossing = next((piece for piece in pieces if SPACE in piece[1:]), None)
        if crossing is not None:
            raise ValueError(f"piece {crossing!r} has a space ({SPACE}) after its first character")
        self._pieces = {piece: (number, _float32(score)) for piece, (number, score) in pieces.items()}
        self._unknown = unknown
        self._penalised = _float32(min((score for _, score in self._pieces.values()), default=0.0) - UNKNOWN_PENALTY)
        self._reach: dict[str, int] = {}
        for piece in pieces:
            opening = piece[:_OPENING_CHARACTERS]
            self._reach[opening] = max(self._reach.get(opening, _OPENING_CHARACTERS - 1), len(piece))

    def encode(self, text: str, max_pieces: int) -> list[int]:
        """Return the ids of the pieces of a normalised text: all, or more than `max_pieces` of them if the text has more."""
        ids: list[int] = []
        score = 0.0
        for word in _split_words(text):
            word_ids, score = self._cut(word, score)
            for number in word_ids:
                if number != self._unknown or not ids or ids[-1] != number:  # consecutive unknown characters are one piece
                    ids.append(number)
            if len(ids) > max_pieces:
                break
        return ids

    def _cut(self, word: str, start: float) -> tuple[list[int], float]:
        """Return the ids of a word's pieces, and the sum of the text's scores after it. start: the sum before it."""
        pieces, reach, unknown, penalised = self._pieces, self._reach, self._unknown, self._penalised
        size = len(word)
        best: list[float] = [start, *[0.0] * size]
        backpointers: list[tuple[int, int] | None] = [None] * (size + 1)  # start and id of the best piece that ends here
        for first in range(size):
            base = best[first]
            has_single = False
            max_length = reach.get(word[first : first + _OPENING_CHARACTERS], _OPENING_CHARACTERS - 1)
            for end in range(first + 1, min(size, first + max_length) + 1):
                piece = pieces.get(word[first:end])
                if piece is None:
                    continue
                has_single = has_single or end == first + 1
                candidate = base + piece[1]
                split = candidate * _SPLIT
                candidate = split - (split - candidate)
                if backpointers[end] is None or candidate > best[end]:
                    best[end] = candidate
                    backpointers[end] = first, piece[0]
            if not has_single:
                end, candidate = first + 1, _float32(base + penalised)
                if backpointers[end] is None or candidate > best[end]:
                    best[end] = candidate
                    backpointers[end] = first, unknown
        ids: list[int] = []
        end = size
        while end:
            backpointer = backpointers[end]
            assert backpointer is not None  # every character has a piece or is unknown
            end = backpointer[0]
            ids.append(backpointer[1])
        return ids[::-1], best[size]


def _split_words(text: str) -> list[str]:
    """Cut before each `SPACE`."""
    first, *following = text.split(SPACE)
    return [*([first] if first else []), *(SPACE + other for other in following)]


def _float32(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded
