"""SentencePiece: its model files, its normalisation of text, and its unigram model (arXiv 1808.06226).

A model file (sentencepiece_model.proto) is a Protocol Buffers message. It is parsed by hand: the four kinds of fields on the wire are
simpler than a dependency whose generated code must match the version of its library. Only unigram models of XLM-R's kind are accepted.

A character map (`precompiled_charsmap`) has a replacement for each key of a few characters. It is a trie of bytes as a double array
(Darts), applied by the longest matching key. The library `tokenizers` applies it to graphemes, with other results for combining marks.

A unigram model cuts a text into the pieces whose probabilities have the greatest product. `tokenizers` sums the logarithms in float64,
SentencePiece in float32: texts such as "aaaaaaa", whose pieces may come in several orders, have equal sums in one and unequal ones in the
other. To get the same ids, sums are rounded here as SentencePiece does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NORMAL, UNKNOWN, CONTROL = 1, 2, 3
"""`SentencePiece.Type` of the accepted pieces; user-defined, unused and byte pieces (4, 5, 6) are refused."""
UNIGRAM = 1

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}


@dataclass(frozen=True)
class SentencePieceModel:
    pieces: tuple[tuple[str, float, int], ...]
    """Text, score (natural logarithm of its probability, float32) and type of each piece, in the order of their ids."""
    character_map: bytes
    """`NormalizerSpec.precompiled_charsmap`; see `models.systems.image_text.sentencepiece`."""


class ModelFileError(ValueError):
    """Error of a file that is not an accepted SentencePiece model; the message says why."""


def read_model(data: bytes) -> SentencePieceModel:
    """Parse a model file. Raises ModelFileError."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_message(number, value)))
        elif number == 2:
            trainer |= dict(_fields(_message(number, value)))
        elif number == 3:
            normalizer |= dict(_fields(_message(number, value)))
    if not pieces:
        raise ModelFileError("it has no pieces")
    _check(trainer, normalizer)
    character_map = normalizer.get(2, b"")
    if not isinstance(character_map, bytes) or not character_map:
        raise ModelFileError("normalizer_spec.precompiled_charsmap is missing, and only models with a character map, as XLM-R's, are taken")
    return SentencePieceModel(tuple(pieces), character_map)


def _check(trainer: dict[int, int | bytes], normalizer: dict[int, int | bytes]) -> None:
    """Refuse models whose texts are normalised or cut in other ways than XLM-R's. Missing fields have the format's defaults."""
    required = (
        ("trainer_spec.model_type", trainer.get(3, UNIGRAM), UNIGRAM, "unigram"),
        ("trainer_spec.treat_whitespace_as_suffix", trainer.get(24, 0), 0, "false"),
        ("trainer_spec.byte_fallback", trainer.get(35, 0), 0, "false"),
        ("normalizer_spec.add_dummy_prefix", normalizer.get(3, 1), 1, "true"),
        ("normalizer_spec.remove_extra_whitespaces", normalizer.get(4, 1), 1, "true"),
        ("normalizer_spec.escape_whitespaces", normalizer.get(5, 1), 1, "true"),
    )
    for name, found, value, word in required:
        if found != value:
            raise ModelFileError(f"{name} is {found!r}; only {word} is taken, as in XLM-R's model")


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    text, score, kind = fields.get(1, b""), fields.get(2, 0), fields.get(3, NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, int) or not isinstance(kind, int):
        raise ModelFileError("a piece has fields of other types than SentencePiece's")
    if kind not in (NORMAL, UNKNOWN, CONTROL):
        raise ModelFileError(f"piece {text!r} is of type {kind}; only normal, unknown and control pieces (1, 2, 3) are taken")
    try:
        return text.decode(), struct.unpack("<f", struct.pack("<I", score))[0], kind
    except (UnicodeDecodeError, struct.error) as error:
        raise ModelFileError(f"piece {text!r}: {error}") from error


def _message(number: int, value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ModelFileError(f"field {number} is not a message")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a message. Floats come as the integer of their bits."""
    offset = 0
    while offset < len(data):
        tag, offset = _varint(data, offset)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, offset = _varint(data, offset)
            yield number, value
            continue
        if kind == _BYTES:
            size, offset = _varint(data, offset)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise ModelFileError(f"byte {offset}: no field of a SentencePiece model starts here")
        content = data[offset : offset + size]
        if len(content) != size:
            raise ModelFileError(f"it ends at byte {len(data)}, in the middle of a field: truncated or another file")
        yield number, content if kind == _BYTES else int.from_bytes(content, "little")
        offset += size


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """Return a varint and the offset of its end."""
    value = 0
    for shift in range(0, 70, 7):
        if offset >= len(data):
            raise ModelFileError(f"it ends at byte {len(data)}, in the middle of a number: truncated or another file")
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
    raise ModelFileError(f"byte {offset}: a number of more than ten bytes")


SPACE = "▁"
"""Character U+2581, which stands for a space in pieces."""
MAX_KEY_BYTES = 128
"""Maximum number of bytes of a key, and of its replacement. The longest in NFKC's map have 12 and 33."""
MAX_NODES = 1 << 20
"""Maximum number of nodes of the trie. NFKC's map has 225,276 keys, most of three characters."""

_ENDS = 1 << 8
_VALUE = (1 << 31) - 1
_LABEL = (1 << 31) | 0xFF


class CharacterMapError(ValueError):
    """Error of bytes that are not a character map; the message says why."""


class CharacterMap:
    """Character map of normalisation. Immutable: any number of threads may use it."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = dict(table)
        self._lengths = sorted({len(key) for key in table}, reverse=True)
        self._trigger_characters = frozenset(key[min(1, len(key) - 1)] for key in table)
        """Characters that a text must have to be changed: keys of several characters are listed by their second."""

    def normalise(self, text: str) -> str:
        """Normalise a text: mapped, without spaces at its ends, one `SPACE` before each word; "" for spaces alone."""
        mapped = text if self._trigger_characters.isdisjoint(text) else self._apply(text)
        words = [word for word in mapped.split(" ") if word]
        return (SPACE + SPACE.join(words)).rstrip(SPACE) if words else ""

    def _apply(self, text: str) -> str:
        mapped, offset = [], 0
        while offset < len(text):
            for length in self._lengths:
                replacement = self._table.get(text[offset : offset + length])
                if replacement is not None:
                    mapped.append(replacement)
                    offset += length
                    break
            else:
                mapped.append(text[offset])
                offset += 1
        return "".join(mapped)


def read_character_map(data: bytes) -> CharacterMap:
    """Read `precompiled_charsmap`: the length of the trie in bytes, the trie, and texts that each end in a zero byte. Raises
    CharacterMapError."""
    if len(data) < 4:
        raise CharacterMapError(f"{len(data)} bytes are too few")
    (size,) = struct.unpack_from("<I", data)
    if size % 4 or not 4 <= size <= len(data) - 4:
        raise CharacterMapError(f"a trie of {size} bytes does not fit into {len(data)}")
    keys = _read_keys(np.frombuffer(data, "<u4", size // 4, offset=4))
    if b"" in keys:
        raise CharacterMapError("it has an empty key")
    texts = data[4 + size :]
    ends = {at: texts.find(b"\0", at) for at in set(keys.values())}
    invalid = next((at for at, end in ends.items() if not at <= end <= at + MAX_KEY_BYTES), None)
    if invalid is not None:
        raise CharacterMapError(f"no text of at most {MAX_KEY_BYTES} bytes starts at byte {invalid} of its texts")
    try:
        values = {at: texts[at:end].decode() for at, end in ends.items()}
        return CharacterMap({key.decode(): values[at] for key, at in keys.items()})
    except UnicodeDecodeError as error:
        raise CharacterMapError(f"{error.object!r} is not UTF-8") from error


def _read_keys(units: NDArray[np.uint32]) -> dict[bytes, int]:
    """Return the keys of a double array and their values.

    A unit has its label in bits 0-7 and 31, in bit 8 whether a key ends, and in bits 10-30 the offset, shifted by 8 more if bit 9 is set,
    to its children: a child with label c is at (index xor offset xor c).
    """
    values64 = units.astype(np.int64)
    labels = values64 & _LABEL
    offsets = (values64 >> 10) << ((values64 & (1 << 9)) >> 6)
    indices = np.arange(len(units))
    children = indices[(labels > 0) & (labels < 256)]
    parents = children ^ labels[children]  # where the parent points to
    order = np.argsort(parents, kind="stable")
    children, parents = children[order], parents[order]

    keys: dict[bytes, int] = {}
    nodes, paths, visited = np.zeros(1, np.int64), np.zeros((1, 0), np.uint8), 1
    for depth in range(MAX_KEY_BYTES + 1):
        if not len(nodes):
            return keys
        targets = nodes ^ offsets[nodes]
        if int(targets.max()) >= len(units):
            raise CharacterMapError("a node of its trie points beyond its end")
        ends = (values64[nodes] & _ENDS) != 0
        spelled = paths[ends].tobytes()
        values = (values64[targets[ends]] & _VALUE).tolist()
        keys |= {spelled[row * depth : (row + 1) * depth]: value for row, value in enumerate(values)}
        first, last = np.searchsorted(parents, targets, "left"), np.searchsorted(parents, targets, "right")
        counts = last - first
        total = int(counts.sum())
        visited += total
        if visited > MAX_NODES:
            raise CharacterMapError(f"its trie has more than {MAX_NODES:,} nodes")
        rows = np.repeat(np.arange(len(nodes)), counts)
        nodes = children[np.arange(total) - np.repeat(counts.cumsum() - counts, counts) + np.repeat(first, counts)]
        paths = np.concatenate([paths[rows], labels[nodes].astype(np.uint8)[:, None]], axis=1)
    raise CharacterMapError(f"a key of more than {MAX_KEY_BYTES} bytes")


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
    first, *following = text.split(SPACE)
    return [*([first] if first else []), *(SPACE + other for other in following)]


def _float32(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded
