"""Perceptual distance of two images in the features of EfficientNet-Lite0, at five depths."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.packages import PyPIPackage
from training.efficientnet_lite0 import MEAN, SIDE, STD, distance, network


class PerceptualDistance(nn.Module):
    def __init__(self, package: PyPIPackage, cache: Path) -> None:
        """Load the network. Raises DataError."""
        super().__init__()
        self.network = network(package, cache, features_only=True)
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Return distances from 0 to 4 of uint8 images (B, S, S, 3) each: (B,)."""
        features: list[Tensor] = self.network(_preprocess(torch.cat([images, others])))
        count = len(images)
        return distance([feature[:count] for feature in features], [feature[count:] for feature in features])


def _preprocess(images: Tensor) -> Tensor:
    """Normalise uint8 images: (B, S, S, 3) → (B, 3, 224, 224)."""
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    return F.interpolate(pixels, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
