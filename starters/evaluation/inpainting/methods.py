"""Methods to fill holes: baselines, and the network as the service runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from models.layers.patches import to_pixels
from models.systems.diffmae.diffusion import DiffusionSampler, SamplerMethod, TimestepSpacing
from models.systems.diffmae.masks import PatchSplit, patches_of_pixels
from models.systems.diffmae.model import DiffMAE
from models.systems.diffmae.sampling import counter_noise, find_known_pixels, inpaint

_RADIUS = 3
"""Radius in pixels of the neighbourhood of OpenCV's methods."""


class Filler(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """Text that changes if the method's fillings do."""

    def fill(self, pixels: Tensor, hole: Tensor, first: int) -> Tensor:
        """Fill holes (B, S, S) of uint8 images (B, S, S, 3), whose content is ignored. first: number of the first image."""


@dataclass(frozen=True)
class MeanColour:
    """Fill with the mean of the known pixels."""

    name: str = "mean colour"
    identity: str = "1"

    def fill(self, pixels: Tensor, hole: Tensor, first: int) -> Tensor:
        left = ~hole.unsqueeze(-1)
        mean = (pixels * left).sum(dim=(1, 2)) / left.sum(dim=(1, 2))  # (B, 3)
        return torch.where(left, pixels, mean.round().to(torch.uint8)[:, None, None])


@dataclass(frozen=True)
class OpenCV:
    """Fill by Telea's fast marching (2004) or Navier-Stokes (Bertalmio et al., 2001)."""

    name: str
    flag: int

    @property
    def identity(self) -> str:
        return f"{self.flag} {_RADIUS} {cv2.__version__}"

    def fill(self, pixels: Tensor, hole: Tensor, first: int) -> Tensor:
        cleared = torch.where(hole.unsqueeze(-1), 0, pixels)
        filled = [
            cv2.inpaint(image.numpy(), mask.numpy().astype(np.uint8), _RADIUS, self.flag) for image, mask in zip(cleared, hole, strict=True)
        ]
        return torch.from_numpy(np.stack(filled))


@dataclass(frozen=True)
class DiffusionFiller:
    """Fill by DDIM without added noise, guided by the known pixels of partly masked patches. Noise depends on the image's number."""

    name: str
    model: DiffMAE
    weights: str
    """SHA-256 of the weights."""
    steps: int
    spacing: TimestepSpacing = TimestepSpacing.UNIFORM
    temperature: float = 1.0

    @property
    def identity(self) -> str:
        return f"{self.weights} {self.steps} {self.spacing}" + (f" {self.temperature:g}" if self.temperature != 1 else "")

    def fill(self, pixels: Tensor, hole: Tensor, first: int) -> Tensor:
        config = self.model.config
        mean, std = torch.tensor(config.mean), torch.tensor(config.std)
        cleared = torch.where(hole.unsqueeze(-1), 0, pixels)
        images = ((cleared.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
        split = PatchSplit.from_mask(patches_of_pixels(hole, config.patch_size))
        noise = counter_noise(torch.arange(first, first + len(pixels)), split, config.patch_values, self.temperature)
        sampler = DiffusionSampler(SamplerMethod.DDIM, self.steps, spacing=self.spacing)
        guide = find_known_pixels(self.model, images, split, hole)
        answer = inpaint(self.model, images, split, sampler, noise, known_pixels=guide)
        return torch.where(hole.unsqueeze(-1), to_pixels(answer.pictures, config.mean, config.std), pixels)


def baselines() -> tuple[Filler, ...]:
    return (MeanColour(), OpenCV("Telea", cv2.INPAINT_TELEA), OpenCV("Navier-Stokes", cv2.INPAINT_NS))
