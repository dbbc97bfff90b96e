"""Texts as the jobs of a worker: up to 64 of about one length in each, and their vectors back in the order of the request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.bundle import BundleSpec
from models.bundle_schema import TextSpec
from server.tasks.base import Arrays, Outputs, Shapes

COUNTS = (1, 4, 16, 64)
"""Numbers of texts for which a job has places: their arrays, and its answer, are as large whatever it holds."""
FEW = 64
"""Work on more of them runs in a thread."""
SHORTEST = 16
"""Bytes. Each further bucket is twice as long."""
BYTES_OF_TOKEN = 4
"""UTF-8 bytes that one token stands for, about."""
TEXTS = "text:"
"""The buckets of texts begin with it."""
ECHOED = ("places", "lengths")
"""Arrays of `packed` that `vectors` needs."""
UNREAD = ("places",)
"""Those of them that no model reads."""


def packed(texts: Sequence[str], places: Sequence[int] | None = None) -> list[Arrays]:
    """Return the arrays of the jobs that hold these texts. places: where each belongs in the answer, by default its own place.

    Each has `utf8` uint8 (R, W), filled up with zeros, `lengths` int32 (R,), 0 where there is no text, and `places` int32 (R,)."""
    where = range(len(texts)) if places is None else places
    by_width: dict[int, list[tuple[int, bytes]]] = {}
    for place, text in zip(where, texts, strict=True):
        encoded = text.encode()
        by_width.setdefault(_width(len(encoded)), []).append((place, encoded))
    most = COUNTS[-1]
    return [
        _packed(together[first : first + most], width)
        for width, together in sorted(by_width.items())
        for first in range(0, len(together), most)
    ]


def _packed(texts: Sequence[tuple[int, bytes]], width: int) -> Arrays:
    rows = next(count for count in COUNTS if count >= len(texts))
    filled = np.zeros((rows, width), np.uint8)
    lengths, places = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    for row, (place, encoded) in enumerate(texts):
        filled[row, : len(encoded)] = np.frombuffer(encoded, np.uint8)
        lengths[row], places[row] = len(encoded), place
    return {"utf8": filled, "lengths": lengths, "places": places}


def _width(nbytes: int) -> int:
    return max(SHORTEST, 1 << max(0, nbytes - 1).bit_length())


def bucket(shapes: Shapes) -> str:
    """Return the bucket of a job of texts."""
    rows, width = shapes["utf8"]
    return f"{TEXTS}{rows}x{width}"


def tokens(shapes: Shapes, text: TextSpec) -> int:
    """Return about how many tokens the network reads for a job of texts, where all of its places are taken."""
    rows, width = shapes["utf8"]
    return rows * (text.length if text.padding == "length" else min(math.ceil(width / BYTES_OF_TOKEN), text.length))


def bound(spec: BundleSpec, arrays: Arrays) -> int:
    """Return the most bytes of the answer to a job of texts: `embedding` float32 (R, dim), `truncated`, `text_tokens` int32 (R,), and the
    arrays of `ECHOED`."""
    return len(arrays["lengths"]) * (4 * spec.embedding_dim + 16)


def vectors(outputs: Sequence[Outputs]) -> Mapping[int, tuple[NDArray[np.float32], bool]]:
    """Return by place the vector, (dim,), of each text that these jobs hold, and whether it was too long and lost its end."""
    found: dict[int, tuple[NDArray[np.float32], bool]] = {}
    for one in outputs:
        if "places" in one:
            present = np.flatnonzero(one["lengths"])
            rows = zip(one["embedding"][present], one["truncated"][present].tolist(), strict=True)
            found.update(zip(one["places"][present].tolist(), rows, strict=True))
    return found


def tokens_read(outputs: Sequence[Outputs]) -> int:
    """Return how many tokens the network read for these jobs, of images or of texts, before any were merged."""
    return sum(int(one["text_tokens"].sum() if "text_tokens" in one else one["tokens"][0]) for one in outputs)
