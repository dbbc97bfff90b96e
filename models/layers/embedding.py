"""Vectors of images, for all encoders: options of a batch, and output arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.forward import token_counts
from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule
from models.registry import Architecture


@dataclass(frozen=True)
class EmbedBatchOptions:
    """Checked options of a batch of images."""

    merge: MergeSchedule
    pool: str
    """One of the architecture's `pools`."""
    tokens: bool
    """Whether every merged token becomes a vector, instead of the image."""

    @staticmethod
    def read(options: Mapping[str, Any], architecture: Architecture, config: Any) -> EmbedBatchOptions:
        """Check options: `merge`, r per block; `pool`, None for the model's own; `output`, "pooled" or "tokens". Raises ValueError."""
        fields = vars(config)
        pools, pool, output = architecture.pools(fields), options.get("pool"), options.get("output", "pooled")
        if pool is not None and pool not in pools:
            raise ValueError(f"pool: {pool!r} is not offered by this model, which has {', '.join(pools)}")
        if output not in ("pooled", "tokens"):
            raise ValueError(f"output: {output!r} is neither 'pooled' nor 'tokens'")
        if output == "tokens" and not architecture.token_vectors(fields):
            raise ValueError("output: 'tokens' is not offered by this model, whose image head is not linear for each token")
        return EmbedBatchOptions(MergeSchedule.from_list(options.get("merge", ())), pool or pools[0], output == "tokens")


def l2_normalise(x: Tensor) -> Tensor:
    """Divide x (..., C) by its length → float32. Zeros stay zeros, and infinities and NaN are kept."""
    return F.normalize(x.float(), dim=-1)


def image_vectors(features: Tensor, tokens_in: int, tokens_out: int) -> dict[str, Tensor]:
    """Return the arrays for pooled features (B, dim): embedding float32 (B, dim), unit length; tokens int32 (B, 2): in and out."""
    return {"embedding": l2_normalise(features), "tokens": token_counts(len(features), tokens_in, tokens_out)}


def token_vectors(features: Tensor, tokens: Tokens, tokens_in: int) -> dict[str, Tensor]:
    """Return the arrays for features (B, T, dim) of the tokens after the special ones.

    vectors float32 (B, T, dim), unit length; sizes int32 (B, T), patches in each; owners int32 (B, patches), the token that each patch went
    into; tokens int32 (B, 2): in and out.

    tokens: traced, after the last block. tokens_in: number of them before the first block, special ones included.
    """
    special, (batch, count, _) = tokens.protected, features.shape
    sizes = torch.ones(batch, count, device=features.device) if tokens.size is None else tokens.size[:, special:, 0]
    if tokens.token_owners:
        owners = tokens.token_owners[-1][:, special:] - special  # special tokens stay in front and hold only themselves
    else:
        owners = torch.arange(count, device=features.device).expand(batch, -1)
    return {
        "vectors": l2_normalise(features),
        "sizes": sizes.to(torch.int32),
        "owners": owners.to(torch.int32),
        "tokens": token_counts(batch, tokens_in, special + count),
    }
