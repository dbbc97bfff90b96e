"""A convolutional head of DiffMAE's decoder: what the decoder drafts patch by patch becomes one picture with what is known around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.patches import patchify, unpatchify


class ImageHead(nn.Module):
    """Convolutions over the whole picture, at the resolution of its pixels. They correct the draft, and begin with no correction.

    width: channels of the convolutions. token_width: channels of the decoder's tokens.
    """

    def __init__(self, channels: int, width: int, token_width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.token = nn.Linear(token_width, patch_size**2 * width)
        self.picture = nn.Conv2d(channels + 1, width, 3, padding=1)
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.far = nn.Conv2d(width, width, 3, padding=2, dilation=2)
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def begin(self) -> None:
        """Set the starting values: of the convolutions as for ReLU networks, of the correction zero."""
        for layer in (self.picture, self.near, self.far):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, draft: Tensor, slots: Tensor, canvas: Tensor) -> Tensor:
        """Tokens (B, M, C), their drafts (B, M, P), where they belong (B, M) as `Split.slots` says, and the known pixels with their mask
        (B or 1, channels + 1, H, W) → patches (B, M, P)."""
        slots, canvas = slots.expand(len(draft), -1), canvas.expand(len(draft), -1, -1, -1)
        known, missing = canvas[:, :-1], canvas[:, -1:]
        drawn = torch.where(missing > 0, self._placed(draft, slots, canvas), known)
        x = self.picture(torch.cat([drawn, missing], dim=1)) + self._placed(self.token(tokens), slots, canvas)
        x = F.gelu(x)
        x = x + F.gelu(self.near(x))
        x = x + F.gelu(self.far(x))
        correction = patchify(self.out(x), self.patch_size)  # (B, N, P)
        places = (slots - 1).clamp(min=0).unsqueeze(-1).expand_as(draft)
        return draft + correction.gather(1, places)

    def _placed(self, patches: Tensor, slots: Tensor, canvas: Tensor) -> Tensor:
        """(B, M, P') → (B, channels', H, W), zero elsewhere."""
        rows, columns = (side // self.patch_size for side in canvas.shape[2:])
        everything = patches.new_zeros(len(patches), 1 + rows * columns, patches.shape[2])  # the first is for padding
        placed = everything.scatter(1, slots.unsqueeze(-1).expand_as(patches), patches)
        return unpatchify(placed[:, 1:], self.patch_size, rows)
