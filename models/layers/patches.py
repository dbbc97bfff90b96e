"""Pictures and patches."""

from __future__ import annotations

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """(B, channels, S, S) → (B, (S/p)², C), rows of patches from the top, timm's parameter names."""

    def __init__(self, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.proj(images)  # (B, C, S/p, S/p)
        return x.flatten(2).transpose(1, 2)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, channels, H, W) → (B, H/p · W/p, p·p·channels). Inside a patch: row, column, channel, the channel fastest."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """The inverse of `patchify` for square pictures."""
    batch, count, values = patches.shape
    side, channels = round(count**0.5), values // patch_size**2
    grid = patches.reshape(batch, side, side, patch_size, patch_size, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, side * patch_size, side * patch_size)
