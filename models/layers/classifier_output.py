"""Output of classifiers of images and of clips, and the tokens that their patches merged into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.ops import effective_r


@dataclass(frozen=True)
class ClassifierOutput:
    logits: Tensor
    """(B, classes)."""
    features: Tensor
    """(B, C), input of the head; (B, 2, C) for distilled models."""
    tokens_in: int
    tokens_out: int
    """Tokens before the first and after the last block, special tokens included."""
    size: Tensor | None
    """(B, tokens_out, 1), input tokens per token; None if nothing merged."""
    source: Tensor | None
    """(B, tokens_out, tokens_in) of 0 and 1; None if nothing merged or it was not traced."""
    token_owners: tuple[Tensor, ...] = ()
    """After each merge, if traced: the token that holds each input token, (B, tokens_in)."""


def patch_token_map(logits: Tensor, owners: Sequence[Tensor], tokens_in: int, schedule: Sequence[int], special: int) -> Tensor:
    """Return the token that holds each patch after each block, int32 (B, depth, patches), special tokens not counted.

    logits: (B, classes); owners: after each merge, the token that holds each of `tokens_in` tokens, (B, tokens_in); schedule: r of every
    block; special: tokens in front, which hold only themselves."""
    tokens, merges = tokens_in, iter(owners)
    owner = torch.arange(tokens, device=logits.device).expand(logits.shape[0], -1)  # (B, tokens_in)
    layers = []
    for r in schedule:
        merged = effective_r(tokens, r, special)
        owner = next(merges) if merged else owner
        tokens -= merged
        layers.append(owner[:, special:] - special)
    return torch.stack(layers, dim=1).to(torch.int32)
