"""Random masking of patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Masking:
    """Visible patches, chosen by noise, whose ascending order is their order in the encoder; of equal values, the first one is first."""

    ids_keep: Tensor
    """(B, visible), indices of the visible patches, in order of their noise."""
    ids_restore: Tensor
    """(B, L), position of each patch in that order."""
    mask: Tensor
    """(B, L), 1 for masked patches, 0 for visible ones."""

    @staticmethod
    def from_noise(noise: Tensor, visible: int) -> Masking:
        order = noise.argsort(dim=1, stable=True)
        restore = order.argsort(dim=1)
        return Masking(ids_keep=order[:, :visible], ids_restore=restore, mask=(restore >= visible).to(noise.dtype))

    def unshuffle(self, visible: Tensor, mask_token: Tensor) -> Tensor:
        """Put visible patches (B, V, C) back in their places → (B, L, C), the masked ones as the mask token (1, 1, C)."""
        batch, length = self.ids_restore.shape
        masked = mask_token.to(visible.dtype).expand(batch, length - visible.shape[1], -1)
        return gather_tokens(torch.cat([visible, masked], dim=1), self.ids_restore)

    def masked_mean(self, errors: Tensor) -> Tensor:
        """Return the mean of errors (B, L) over the masked patches of the whole batch."""
        return (errors * self.mask).sum() / self.mask.sum()


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Gather tokens by index: (B, L, C), or (1, L, C) for the whole batch, and (B, V) → (B, V, C).

    Whole rows are copied: on a CPU many times faster than `gather` with an expanded index.
    """
    batch, length, width = tokens.shape
    if batch > 1:
        ids = ids + torch.arange(0, batch * length, length, device=ids.device).unsqueeze(1)
    return tokens.reshape(batch * length, width).index_select(0, ids.flatten()).view(*ids.shape, width)
