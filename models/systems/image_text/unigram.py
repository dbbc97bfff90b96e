"""SentencePiece's unigram model (arXiv 1808.06226): a text is cut into the pieces whose probabilities have the greatest product.

The library `tokenizers` sums the logarithms in float64, SentencePiece in float32: texts such as "aaaaaaa", whose pieces may come in several
orders, have equal sums in one and unequal ones in the other. To get the same ids, sums are rounded here as SentencePiece does.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from models.systems.image_text.sentencepiece_normalizer import SPACE

UNKNOWN_PENALTY = 10.0
"""Subtracted from the lowest score for a character that no piece has."""

_SPLIT = float(2**29 + 1)
"""Factor that rounds float64 to float32 (Veltkamp's splitting)."""
_OPENING = 3
"""Characters that say how long a piece can be that begins with them."""


class Unigram:
    """Immutable: any number of threads may use it."""

    def __init__(self, pieces: Mapping[str, tuple[int, float]], unknown: int) -> None:
        """pieces: text → id and score. unknown: the id of characters without a piece. Raises ValueError for a piece that goes on in a
        second word: words are cut one after another."""
        across = next((piece for piece in pieces if SPACE in piece[1:]), None)
        if across is not None:
            raise ValueError(f"piece {across!r} has a space ({SPACE}) behind its first character")
        self._pieces = {piece: (number, _float32(score)) for piece, (number, score) in pieces.items()}
        self._unknown = unknown
        self._penalised = _float32(min((score for _, score in self._pieces.values()), default=0.0) - UNKNOWN_PENALTY)
        self._reach: dict[str, int] = {}
        for piece in pieces:
            opening = piece[:_OPENING]
            self._reach[opening] = max(self._reach.get(opening, _OPENING - 1), len(piece))

    def encode(self, text: str, most: int) -> list[int]:
        """Ids of the pieces of a normalised text: all, or more than `most` of them where the text has more."""
        ids: list[int] = []
        score = 0.0
        for word in _words(text):
            found, score = self._cut(word, score)
            for number in found:
                if number != self._unknown or not ids or ids[-1] != number:  # unknown characters in a row are one piece
                    ids.append(number)
            if len(ids) > most:
                break
        return ids

    def _cut(self, word: str, start: float) -> tuple[list[int], float]:
        """Ids of a word's pieces, and the sum of the text's scores behind it. start: the sum before it."""
        pieces, reach, unknown, penalised = self._pieces, self._reach, self._unknown, self._penalised
        size = len(word)
        best: list[float] = [start, *[0.0] * size]
        came: list[tuple[int, int] | None] = [None] * (size + 1)  # where the best piece that ends here begins, and its id
        for begin in range(size):
            base = best[begin]
            single = False
            longest = reach.get(word[begin : begin + _OPENING], _OPENING - 1)
            for end in range(begin + 1, min(size, begin + longest) + 1):
                piece = pieces.get(word[begin:end])
                if piece is None:
                    continue
                single = single or end == begin + 1
                candidate = base + piece[1]
                split = candidate * _SPLIT
                candidate = split - (split - candidate)
                if came[end] is None or candidate > best[end]:
                    best[end] = candidate
                    came[end] = begin, piece[0]
            if not single:
                end, candidate = begin + 1, _float32(base + penalised)
                if came[end] is None or candidate > best[end]:
                    best[end] = candidate
                    came[end] = begin, unknown
        ids: list[int] = []
        end = size
        while end:
            found = came[end]
            assert found is not None  # every character has a piece or is unknown
            end = found[0]
            ids.append(found[1])
        return ids[::-1], best[size]


def _words(text: str) -> list[str]:
    """Cut before each `SPACE`."""
    first, *others = text.split(SPACE)
    return [*([first] if first else []), *(SPACE + other for other in others)]


def _float32(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded
