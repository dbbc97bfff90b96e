"""Jobs of tasks whose bundles turn images and texts into vectors of one space: an image in each, or up to 64 texts of similar length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import BundleSpec
from models.bundle_schema import TextSpec
from server.tasks import base
from server.tasks.base import Arrays, OptionsT, Outputs, PlanT, Shapes
from server.tasks.classify.images import ImageTask, patches
from server.tasks.options import InvalidOption

TEXTS_PER_JOB = (1, 4, 16, 64)
"""Numbers of texts that a job has rows for: arrays and answers have this size, however many rows are used."""
MAX_INLINE_TEXTS = 64
"""Maximum number of texts that are handled in the event loop, not in a thread."""
MIN_BUCKET_BYTES = 16
"""Width of the first bucket; each further bucket is twice as wide."""
BYTES_PER_TOKEN = 4
"""Approximate number of UTF-8 bytes in one token."""
BUCKET_PREFIX = "text:"
"""Prefix of the buckets of texts."""
ECHOED_ARRAYS = ("places", "lengths")
"""Arrays of `pack_texts` that `vectors` needs."""
UNREAD_ARRAYS = ("places",)
"""Echoed arrays that no model reads."""


class VectorTask(
    ImageTask[OptionsT, PlanT],
    base.Plans[OptionsT, PlanT],
    base.SelectsBundles,
    base.ControlsBatching[PlanT],
    base.Counts,
    base.EchoesArrays,
    base.PresentsElsewhere[PlanT],
    base.OffersTensors[PlanT],
):
    """A task whose jobs hold either an image, with arguments, or texts."""

    echoed_arrays = ECHOED_ARRAYS
    unread_arrays = UNREAD_ARRAYS

    def bucket(self, plan: PlanT, spec: BundleSpec, shapes: Shapes) -> str:
        """Return the bucket. All jobs for vectors of images share batches, whatever their vectors are used for."""
        return bucket(shapes) if "utf8" in shapes else super().bucket(plan, spec, shapes)

    def arguments(self, plan: PlanT, shapes: Shapes) -> dict[str, Any]:
        return {} if "utf8" in shapes else self._image_arguments(plan)

    def _image_arguments(self, plan: PlanT) -> dict[str, Any]:
        raise NotImplementedError

    def progress_total(self, jobs: Sequence[Arrays]) -> tuple[int, str]:
        """Return the number of images, or of texts if there are no images."""
        images = sum("utf8" not in arrays for arrays in jobs)
        return (images, "images") if images else (sum(int(np.count_nonzero(arrays["lengths"])) for arrays in jobs), "texts")

    def weight(self, spec: BundleSpec, shapes: Shapes) -> float:
        """Return the weight by the number of tokens."""
        if "utf8" not in shapes or spec.text is None:
            return 1.0
        return tokens(shapes, spec.text) / patches(spec)

    def samples(self, spec: BundleSpec) -> Sequence[Arrays]:
        return (*super().samples(spec), *(() if spec.text is None else pack_texts(["a dog"])))


def image_arguments(schedule: Sequence[int], pool: str = "", output: str = "pooled") -> dict[str, Any]:
    return {"merge": list(schedule)} | ({"pool": pool} if pool else {}) | ({"output": output} if output != "pooled" else {})


def image_bound(spec: BundleSpec, output: str = "pooled") -> int:
    """Bound the vector (dim,) and tokens (2,); or vectors (T, dim), sizes (T,) and owners (patches,)."""
    dim = spec.embedding_dim
    if output == "pooled":
        return 4 * dim + 8
    return patches(spec) * (4 * dim + 8) + 8


def need_tokenizer(spec: BundleSpec, field: str) -> None:
    """Raise InvalidOption for a pair that cannot read texts."""
    if spec.text is None:
        raise InvalidOption(
            field,
            f"{spec.id} has no tokenizer and takes images alone; `opsin bundles tokenizer {spec.name} FILE` and a restart give it one",
        )


def pack_texts(texts: Sequence[str], places: Sequence[int] | None = None) -> list[Arrays]:
    """Return the arrays of jobs for these texts. places: the position of each text in the answer, by default its index.

    Each job has `utf8` uint8 (R, W), padded with zeros, `lengths` int32 (R,), 0 for unused rows, and `places` int32 (R,)."""
    positions = range(len(texts)) if places is None else places
    by_width: dict[int, list[tuple[int, bytes]]] = {}
    for place, text in zip(positions, texts, strict=True):
        encoded = text.encode()
        by_width.setdefault(_width(len(encoded)), []).append((place, encoded))
    max_texts = TEXTS_PER_JOB[-1]
    return [
        _pack(similar[first : first + max_texts], width)
        for width, similar in sorted(by_width.items())
        for first in range(0, len(similar), max_texts)
    ]


def _pack(texts: Sequence[tuple[int, bytes]], width: int) -> Arrays:
    rows = next(count for count in TEXTS_PER_JOB if count >= len(texts))
    filled = np.zeros((rows, width), np.uint8)
    lengths, places = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    for row, (place, encoded) in enumerate(texts):
        filled[row, : len(encoded)] = np.frombuffer(encoded, np.uint8)
        lengths[row], places[row] = len(encoded), place
    return {"utf8": filled, "lengths": lengths, "places": places}


def _width(nbytes: int) -> int:
    return max(MIN_BUCKET_BYTES, 1 << max(0, nbytes - 1).bit_length())


def bucket(shapes: Shapes) -> str:
    """Return the bucket of a job of texts."""
    rows, width = shapes["utf8"]
    return f"{BUCKET_PREFIX}{rows}x{width}"


def tokens(shapes: Shapes, text: TextSpec) -> int:
    """Return the approximate number of tokens that the network reads for a job of texts, unused rows included."""
    rows, width = shapes["utf8"]
    return rows * (text.length if text.padding == "length" else min(math.ceil(width / BYTES_PER_TOKEN), text.length))


def bound(spec: BundleSpec, arrays: Arrays) -> int:
    """Return the maximum size in bytes of the answer to a job of texts.

    It has `embedding` float32 (R, dim), `truncated`, `text_tokens` int32 (R,), and the arrays of `ECHOED`."""
    return len(arrays["lengths"]) * (4 * spec.embedding_dim + 16)


def vectors(outputs: Sequence[Outputs]) -> Mapping[int, tuple[NDArray[np.float32], bool]]:
    """Return, by position, the vector (dim,) of each text of these jobs, and whether it was too long and lost its end."""
    found: dict[int, tuple[NDArray[np.float32], bool]] = {}
    for one in outputs:
        if "places" in one:
            present = np.flatnonzero(one["lengths"])
            rows = zip(one["embedding"][present], one["truncated"][present].tolist(), strict=True)
            found.update(zip(one["places"][present].tolist(), rows, strict=True))
    return found


def tokens_read(outputs: Sequence[Outputs]) -> int:
    """Return the number of tokens that the network read for these jobs, of images or texts, before merging."""
    return sum(int(one["text_tokens"].sum() if "text_tokens" in one else one["tokens"][0]) for one in outputs)
