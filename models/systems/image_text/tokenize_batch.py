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


def reader(bundle: Bundle) -> TokenizeFn:
    """Return a function: utf8 uint8 (B, R, W), filled up with zeros, and lengths int32 (B, R), 0 where there is no text → word_ids and
    visible int64 (B, R, N) for the network, truncated bool (B, R) and text_tokens int32 (B, R), the tokens read, for the answer. Raises
    BundleError."""
    tokenizer = Tokenizer.open(bundle)

    def read(arrays: Mapping[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        utf8, lengths = arrays["utf8"], arrays["lengths"]
        present = lengths > 0
        rows = zip(utf8[present], lengths[present].tolist(), strict=True)
        texts = [row[:length].tobytes().decode() for row, length in rows]
        encoded = tokenizer.encode(texts)
        nothing = np.flatnonzero(~encoded.visible.any(axis=1))
        if len(nothing):
            raise InvalidInput(f"{texts[nothing[0]][:40]!r} has no word that the bundle knows: nothing is left to read")
        return {
            "word_ids": _placed(encoded.tokens, present),
            "visible": _placed(encoded.visible, present),
        }, {
            "truncated": _placed(encoded.truncated, present),
            "text_tokens": _placed(encoded.visible.sum(axis=1, dtype=np.int32), present),
        }

    return read


def _placed(rows: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[Any]:
    """(n, …) → (B, R, …), zeros where there is no text."""
    placed = np.zeros((*present.shape, *rows.shape[1:]), rows.dtype)
    placed[present] = rows
    return placed
