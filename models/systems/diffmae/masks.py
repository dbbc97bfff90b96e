"""Split of an image's patches into visible and masked ones: from noise, from a rule, or from a user's mask of pixels.

Masks of patches are bool (B, rows, columns), or (B, times, rows, columns) for clips, True if a patch is to be filled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PatchSplit:
    """Positions in raster order, ascending. Samples may have different numbers of them: shorter rows are padded with position 0.

    A patch may be in neither half: patches outside of an image that does not fill its grid are neither encoded nor generated.
    """

    visible: Tensor
    """(B, V) int64."""
    masked: Tensor
    """(B, M) int64."""
    visible_size: Tensor | None = None
    """(B, V, 1) float32, 1 for a patch and 0 for padding; None if nothing is padded."""
    masked_size: Tensor | None = None
    """(B, M, 1)."""

    @staticmethod
    def from_noise(noise: Tensor, ratio: float) -> PatchSplit:
        """Split at random by uniform noise (B, N): the N · (1 − ratio) patches with the least noise, rounded down, are visible."""
        order = noise.argsort(dim=1)
        visible = int(noise.shape[1] * (1 - ratio))
        return PatchSplit(order[:, :visible].sort(dim=1).values, order[:, visible:].sort(dim=1).values)

    @staticmethod
    def from_mask(masked: Tensor, inside: Tensor | None = None) -> PatchSplit:
        """Split by a mask of patches. inside: patches that belong to the image. (B, ...) each."""
        masked = masked.flatten(1)
        present = torch.ones_like(masked) if inside is None else inside.flatten(1)
        return PatchSplit.from_masks(present & ~masked, present & masked)

    @staticmethod
    def from_masks(seen: Tensor, filled: Tensor) -> PatchSplit:
        """Split by masks of the patches that the encoder sees and of those that are filled, (B, ...) each."""
        visible, visible_size = _positions(seen.flatten(1))
        masked, masked_size = _positions(filled.flatten(1))
        return PatchSplit(visible, masked, visible_size, masked_size)


def centre_mask(batch: int, grid: tuple[int, int]) -> Tensor:
    """Mask half of the rows and half of the columns, in the middle: bool (B, rows, columns)."""
    rows, columns = grid
    mask = torch.zeros(batch, rows, columns, dtype=torch.bool)
    top, left = (rows - rows // 2) // 2, (columns - columns // 2) // 2
    mask[:, top : top + rows // 2, left : left + columns // 2] = True
    return mask


def patches_of_pixels(mask: Tensor, patch_size: int) -> Tensor:
    """Convert a mask of pixels, bool (B, H, W), to one of patches, (B, H/p, W/p). A patch is masked if any of its pixels is."""
    return F.max_pool2d(mask.float().unsqueeze(1), patch_size).squeeze(1) > 0


def _positions(chosen: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return ascending positions of True in bool (B, N), padded with 0 to the longest row, and sizes, None if nothing is padded."""
    counts = chosen.sum(dim=1)
    longest = int(counts.max()) if len(counts) else 0
    positions = (~chosen).byte().argsort(dim=1, stable=True)[:, :longest]
    real = torch.arange(longest, device=chosen.device) < counts.unsqueeze(1)
    if bool(real.all()):
        return positions, None
    return positions.where(real, 0), real.unsqueeze(-1).float()
