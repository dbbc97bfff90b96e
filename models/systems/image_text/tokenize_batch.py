"""Texts of a worker's batch → tokens, by the tokenizer of a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.layers.forward import TokenizeFn
from models.layers.stepwise import InvalidInput
from models.systems.image_text.tokenizer import Tokenizer


def make_tokenize_fn(bundle: Bundle) -> TokenizeFn:
    """Return a function that tokenizes a batch. Raises BundleError.

    Its input: utf8 uint8 (B, R, W), padded with zeros, and lengths int32 (B, R), 0 without a text. Its outputs: word_ids and visible int64
    (B, R, N) for the network; truncated bool (B, R) and text_tokens int32 (B, R), the number of tokens, for the answer.
    """
    tokenizer = Tokenizer.open(bundle)

    def tokenize(arrays: Mapping[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        utf8, lengths = arrays["utf8"], arrays["lengths"]
        present = lengths > 0
        rows = zip(utf8[present], lengths[present].tolist(), strict=True)
        texts = [row[:length].tobytes().decode() for row, length in rows]
        encoded = tokenizer.encode(texts)
        empty = np.flatnonzero(~encoded.visible.any(axis=1))
        if len(empty):
            raise InvalidInput(f"{texts[empty[0]][:40]!r} has no word that is in the bundle's vocabulary")
        return {
            "word_ids": _place(encoded.tokens, present),
            "visible": _place(encoded.visible, present),
        }, {
            "truncated": _place(encoded.truncated, present),
            "text_tokens": _place(encoded.visible.sum(axis=1, dtype=np.int32), present),
        }

    return tokenize


def _place(rows: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[Any]:
    """Place rows where there are texts: (n, …) → (B, R, …), zeros elsewhere."""
    placed = np.zeros((*present.shape, *rows.shape[1:]), rows.dtype)
    placed[present] = rows
    return placed
