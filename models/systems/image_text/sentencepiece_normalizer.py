"""SentencePiece's normalisation of text: its character map (`precompiled_charsmap`) and its treatment of spaces.

The map holds for each key, a few characters, what stands for it. It is a trie of bytes as a double array (Darts), applied by the
longest key that matches. The library `tokenizers` applies it to graphemes, with other results for combining marks, so it is applied here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

SPACE = "▁"
"""U+2581, which stands for a space in pieces."""
LONGEST = 128
"""Bytes of a key, and of what stands for it. The longest in NFKC's map are 12 and 33."""
MOST_NODES = 1 << 20
"""Nodes of the trie. NFKC's map has 225,276 keys, most of three characters."""

_ENDS = 1 << 8
_VALUE = (1 << 31) - 1
_LABEL = (1 << 31) | 0xFF


class CharacterMapError(ValueError):
    """The bytes are no character map; the message says why."""


class CharacterMap:
    """Immutable: any number of threads may use it."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = dict(table)
        self._lengths = sorted({len(key) for key in table}, reverse=True)
        self._telling = frozenset(key[min(1, len(key) - 1)] for key in table)
        """A text without any of these is left as it is: keys of several characters need their second."""

    def normalise(self, text: str) -> str:
        """Text as SentencePiece's pieces see it: mapped, without spaces at its ends, one `SPACE` before each word; "" for spaces alone."""
        mapped = text if self._telling.isdisjoint(text) else self._mapped(text)
        words = [word for word in mapped.split(" ") if word]
        return (SPACE + SPACE.join(words)).rstrip(SPACE) if words else ""

    def _mapped(self, text: str) -> str:
        found, at = [], 0
        while at < len(text):
            for length in self._lengths:
                replacement = self._table.get(text[at : at + length])
                if replacement is not None:
                    found.append(replacement)
                    at += length
                    break
            else:
                found.append(text[at])
                at += 1
        return "".join(found)


def read_character_map(data: bytes) -> CharacterMap:
    """Read `precompiled_charsmap`: the length of the trie in bytes, the trie, and texts that each end in a zero byte. Raises
    CharacterMapError."""
    if len(data) < 4:
        raise CharacterMapError(f"{len(data)} bytes are too few")
    (size,) = struct.unpack_from("<I", data)
    if size % 4 or not 4 <= size <= len(data) - 4:
        raise CharacterMapError(f"a trie of {size} bytes does not fit into {len(data)}")
    keys = _keys(np.frombuffer(data, "<u4", size // 4, offset=4))
    if b"" in keys:
        raise CharacterMapError("it has an empty key")
    texts = data[4 + size :]
    ends = {at: texts.find(b"\0", at) for at in set(keys.values())}
    far = next((at for at, end in ends.items() if not at <= end <= at + LONGEST), None)
    if far is not None:
        raise CharacterMapError(f"no text of at most {LONGEST} bytes begins at byte {far} of its texts")
    try:
        values = {at: texts[at:end].decode() for at, end in ends.items()}
        return CharacterMap({key.decode(): values[at] for key, at in keys.items()})
    except UnicodeDecodeError as error:
        raise CharacterMapError(f"{error.object!r} is not UTF-8") from error


def _keys(units: NDArray[np.uint32]) -> dict[bytes, int]:
    """Keys of a double array and their values. A unit has its label in bits 0-7 and 31, in bit 8 whether a key ends, and in bits 10-30 the
    offset, shifted by 8 more if bit 9 is set, to its children: a child with label c lies at (place xor offset xor c)."""
    numbers = units.astype(np.int64)
    labels = numbers & _LABEL
    offsets = (numbers >> 10) << ((numbers & (1 << 9)) >> 6)
    places = np.arange(len(units))
    children = places[(labels > 0) & (labels < 256)]
    families = children ^ labels[children]  # where the parent points to
    order = np.argsort(families, kind="stable")
    children, families = children[order], families[order]

    keys: dict[bytes, int] = {}
    nodes, paths, visited = np.zeros(1, np.int64), np.zeros((1, 0), np.uint8), 1
    for depth in range(LONGEST + 1):
        if not len(nodes):
            return keys
        targets = nodes ^ offsets[nodes]
        if int(targets.max()) >= len(units):
            raise CharacterMapError("a node of its trie points behind its end")
        ends = (numbers[nodes] & _ENDS) != 0
        spelled = paths[ends].tobytes()
        values = (numbers[targets[ends]] & _VALUE).tolist()
        keys |= {spelled[row * depth : (row + 1) * depth]: value for row, value in enumerate(values)}
        first, last = np.searchsorted(families, targets, "left"), np.searchsorted(families, targets, "right")
        counts = last - first
        total = int(counts.sum())
        visited += total
        if visited > MOST_NODES:
            raise CharacterMapError(f"its trie has more than {MOST_NODES:,} nodes")
        rows = np.repeat(np.arange(len(nodes)), counts)
        nodes = children[np.arange(total) - np.repeat(counts.cumsum() - counts, counts) + np.repeat(first, counts)]
        paths = np.concatenate([paths[rows], labels[nodes].astype(np.uint8)[:, None]], axis=1)
    raise CharacterMapError(f"a key of more than {LONGEST} bytes")
