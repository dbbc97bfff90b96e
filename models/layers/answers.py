"""Output of classifiers of images and of clips."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Classified:
    """Output of a classifier."""

    logits: Tensor
    """(B, classes)."""
    features: Tensor
    """(B, C), what the head saw; (B, 2, C) for distilled models."""
    tokens_in: int
    tokens_out: int
    """Tokens before the first and after the last block, special tokens included."""
    size: Tensor | None
    """(B, tokens_out, 1), input tokens per token; None if nothing merged."""
    source: Tensor | None
    """(B, tokens_out, tokens_in) of 0 and 1; None if nothing merged or it was not traced."""
    owners: tuple[Tensor, ...] = ()
    """After each merge, if traced: the token that holds each input token, (B, tokens_in)."""
