"""Mixup (arXiv 1710.09412) and CutMix (1905.04899) of neighbours in a batch, one strength for the whole batch, as MAE fine-tunes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor

from training import random_draws


@dataclass(frozen=True)
class MixupCutMix:
    """Exactly one of both, or neither, in each batch."""

    mixup: float = 0.0
    """Parameter of the Beta distribution of a sample's share; 0: no mixup."""
    cutmix: float = 0.0
    """Parameter of the Beta distribution of CutMix; 0: no CutMix."""
    probability: float = 1.0
    """Probability that a batch is mixed at all."""
    cutmix_probability: float = 0.5
    """Probability of CutMix in a mixed batch, where both are on."""

    @property
    def active(self) -> bool:
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def mix(self, pixels: Tensor, targets: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, …, H, W), all frames of a clip alike, and targets (B, classes), probabilities → the same of mixed samples.

        Samples 2k and 2k + 1 are mixed with each other, an odd last one with itself. draw: (B,); ranks share what they draw of it.
        """
        if not self.active:
            return pixels, targets
        mixed, method, level, row, column = random_draws.uniform(random_draws.batch_draw(draw), (5,), "mixing")[0].tolist()
        if mixed >= self.probability:
            return pixels, targets
        partner = (torch.arange(len(pixels)) ^ 1).clamp(max=len(pixels) - 1).to(pixels.device)
        if self.cutmix > 0 and (self.mixup <= 0 or method < self.cutmix_probability):
            height, width = pixels.shape[-2:]
            box = cut_box(height, width, float(betaincinv(self.cutmix, self.cutmix, level)), row, column)
            share = 1 - box.area / (height * width)
            pasted = pixels.clone()
            pasted[..., box.top : box.bottom, box.left : box.right] = pixels[partner][..., box.top : box.bottom, box.left : box.right]
            return pasted, blend(targets, targets[partner], share)
        share = float(betaincinv(self.mixup, self.mixup, level))
        return blend(pixels, pixels[partner], share), blend(targets, targets[partner], share)


@dataclass(frozen=True)
class CutMixBox:
    """Pixels, the last row and column excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)


def cut_box(height: int, width: int, share: float, row: float, column: float) -> CutMixBox:
    """Return a box of the image's shape and 1 - share of its area, before it is clipped at the borders.

    `row` and `column` are its centre in [0, 1).
    """
    half_height, half_width = (int(side * (1 - share) ** 0.5) // 2 for side in (height, width))
    y, x = int(row * height), int(column * width)
    return CutMixBox(max(y - half_height, 0), min(y + half_height, height), max(x - half_width, 0), min(x + half_width, width))


def blend(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Mix tensors of any shape; `share` is the weight of `a`."""
    return a * share + b * (1 - share)
