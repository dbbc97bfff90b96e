"""Choice of the patches that a masked autoencoder sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Masking:
    """Visible patches, chosen by noise: its ascending order is the order of the patches for the encoder; of equal values, the first patch
    comes first."""

    kept: Tensor
    """(B, visible) positions, in order of their noise."""
    restore: Tensor
    """(B, L) where each position is in that order."""
    mask: Tensor
    """(B, L) 1 where a patch is removed, 0 where it is visible."""

    @staticmethod
    def by_noise(noise: Tensor, visible: int) -> Masking:
        order = noise.argsort(dim=1, stable=True)
        restore = order.argsort(dim=1)
        return Masking(kept=order[:, :visible], restore=restore, mask=(restore >= visible).to(noise.dtype))

    def fill(self, visible: Tensor, mask_token: Tensor) -> Tensor:
        """Visible patches (B, V, C) → all (B, L, C) where they belong, the removed ones as the mask token (1, 1, C)."""
        batch, length = self.restore.shape
        removed = mask_token.to(visible.dtype).expand(batch, length - visible.shape[1], -1)
        return gather_tokens(torch.cat([visible, removed], dim=1), self.restore)

    def mean_removed(self, errors: Tensor) -> Tensor:
        """(B, L) → their mean over the removed patches of the whole batch."""
        return (errors * self.mask).sum() / self.mask.sum()


def gather_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """(B, L, C), or (1, L, C) for all alike, and (B, V) → (B, V, C), the tokens at these places.

    Whole rows are copied: on a CPU many times faster than `gather` with an expanded index.
    """
    batch, length, width = tokens.shape
    if batch > 1:
        places = places + torch.arange(0, batch * length, length, device=places.device).unsqueeze(1)
    return tokens.reshape(batch * length, width).index_select(0, places.flatten()).view(*places.shape, width)
