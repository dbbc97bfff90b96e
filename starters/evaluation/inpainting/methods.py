"""Ways to fill a hole: what a network is compared with, and the network as the service runs it."""

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
from models.systems.diffmae.sampling import counter_noise, inpaint, known_pixels

_RADIUS = 3
"""Pixels around a point that OpenCV's methods look at."""


class Filler(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """Changes if its fillings do."""

    def fill(self, pixels: Tensor, hole: Tensor, first: int) -> Tensor:
        """uint8 (B, S, S, 3), bool (B, S, S), number of the first image → uint8 like the input. What is under the hole has no influence."""


@dataclass(frozen=True)
class MeanColour:
    """The mean of the pixels that are left."""

    name: str = "mean colour"
    identity: str = "1"

    def fill(self, pixels: Tensor, hole: Tensor, first: int) -> Tensor:
        left = ~hole.unsqueeze(-1)
        mean = (pixels * left).sum(dim=(1, 2)) / left.sum(dim=(1, 2))  # (B, 3)
        return torch.where(left, pixels, mean.round().to(torch.uint8)[:, None, None])


@dataclass(frozen=True)
class OpenCV:
    """Colours flow in from the edge: Telea's fast marching (2004), or Navier-Stokes (Bertalmio et al., 2001)."""

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
class Diffusion:
    """DDIM without added noise; known pixels of partly masked patches guide the others. Each image draws by its own number."""

    name: str
    model: DiffMAE
    weights: str
    """SHA-256."""
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
        split = PatchSplit.by_mask(patches_of_pixels(hole, config.patch_size))
        noise = counter_noise(torch.arange(first, first + len(pixels)), split, config.patch_values, self.temperature)
        sampler = DiffusionSampler(SamplerMethod.DDIM, self.steps, spacing=self.spacing)
        known = known_pixels(self.model, images, split, hole)
        answer = inpaint(self.model, images, split, sampler, noise, known=known)
        return torch.where(hole.unsqueeze(-1), to_pixels(answer.pictures, config.mean, config.std), pixels)


def simple() -> tuple[Filler, ...]:
    return (MeanColour(), OpenCV("Telea", cv2.INPAINT_TELEA), OpenCV("Navier-Stokes", cv2.INPAINT_NS))
