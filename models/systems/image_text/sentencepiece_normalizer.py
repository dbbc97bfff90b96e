"""SentencePiece's normalisation of text: its character map (`precompiled_charsmap`) and its treatment of spaces.

The map has a replacement for each key of a few characters. It is a trie of bytes as a double array (Darts), applied by the longest matching
key. The library `tokenizers` applies it to graphemes, with other results for combining marks, so it is applied here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

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
