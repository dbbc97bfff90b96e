"""DiffMAE's pre-training (arXiv 2304.03283): denoise the masked patches at random times, given the visible ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from models.diffmae.masks import Split
from models.diffmae.model import Denoising, DiffMAE, Target
from models.layers.masking import take
from models.layers.patches import to_pixels
from models.vit.model import ViT
from training import draws
from training.objectives import masks
from training.objectives.base import Batch, Facts
from training.objectives.checks import expect, load_teacher, need
from training.objectives.masks import Strategy
from training.objectives.painting import Painting, PaintingSettings, Visit
from training.reductions import term_of_mean
from training.settings import Settings


class DiffMAESettings(Settings):
    kind: Literal["diffmae"] = "diffmae"
    masks: dict[Strategy, float] = Field(default={Strategy.RANDOM: 1.0}, min_length=1)
    """Odds of the strategies. A model that is to serve users' masks learns from blocks, boxes and strokes, too."""
    mask_ratio: float = Field(default=0.75, gt=0, le=1)
    """Share that random masks remove: 0.9 for clips."""
    min_snr: float | None = Field(default=None, gt=0)
    """Weight each time by its signal-to-noise ratio, cut off here ("min-SNR", arXiv 2303.09556; divided by the ratio where noise is the
    target). None: all times alike, as DiffMAE."""
    least_weight: float = Field(default=0.0, ge=0)
    """The least that a time counts where there is `min_snr`: from pure noise on a filling is decided, and its own weight there is 0."""
    pure: float = Field(default=0.0, ge=0, le=1)
    """Share of the samples at the last time, where there is only noise and every filling begins; the others' times are uniform."""
    pixel_weight: float = Field(default=1.0, ge=0)
    """Weight of the pixels' loss beside that of `clip_width` features, whose weight is the model's; 0: features are the only target."""
    parts: int = Field(default=1, gt=0)
    """Parts of a micro-batch that are padded apart, by the number of masked patches: the same loss for less time where masks differ in
    size."""
    teacher: Path | None = None
    """Bundle of a ViT, or of a pair with one, whose patches the second head predicts; for models with `clip_width`."""
    painting: PaintingSettings | None = None
    """Judge pictures as they are painted, too; for models of images that predict clean pixels."""

    @field_validator("masks")
    @classmethod
    def _odds(cls, value: dict[Strategy, float]) -> dict[Strategy, float]:
        if min(value.values()) < 0 or sum(value.values()) <= 0:
            raise ValueError("odds are not negative, and not all 0")
        return value


@dataclass(frozen=True)
class Drawn:
    """Random choices for a batch."""

    split: Split
    t: Tensor
    """(B,)."""
    noise: Tensor
    """(B, M, P), normal."""
    missing: Tensor | None = None
    """bool (B, H, W), the pixels that are to be made, for networks that see pixels; None: all of the masked patches."""
    visit: Visit | None = None
    """Where there is `painting`."""

    def part(self, rows: Tensor, split: Split) -> Drawn:
        """Some samples, padded less."""
        noise = self.noise[rows, : split.masked.shape[1]]
        missing = None if self.missing is None else self.missing[rows]
        return Drawn(split, self.t[rows], noise, missing, None if self.visit is None else self.visit.of(rows))


class Diffusion(nn.Module):
    """Batch: normalised `pixels` (B, channels, H, W), or `clip` (B, channels, T, H, W)."""

    def __init__(
        self,
        model: DiffMAE,
        settings: DiffMAESettings,
        teacher: nn.Module | None = None,
        facts: Facts | None = None,
        painting: Painting | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self._facts = facts or Facts()
        self.input = "pixels" if model.config.frames is None else "clip"
        self.teacher = None if teacher is None else _vision(teacher).requires_grad_(False).eval()
        self.painting = painting
        self._check(model.config.clip_width)

    def train(self, mode: bool = True) -> Diffusion:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.losses(need(batch, self.input), self.drawn(batch["draw"]))

    def drawn(self, draw: Tensor) -> Drawn:
        """Draws (B,) → masks, times and noise."""
        config, settings = self.model.config, self.settings
        split, missing = self._masks(draw)
        t = draws.integers(draw, (), 0, config.schedule.steps, "time")
        if settings.pure:
            t = torch.where(draws.uniform(draw, (), "pure") < settings.pure, config.schedule.steps - 1, t)
        noise = draws.normal(draw, (config.patches, config.patch_values), "noise")
        visit = None if self.painting is None else self.painting.visit(draw, config.schedule)
        return Drawn(split, t, take(noise, split.masked), missing, visit)

    def _masks(self, draw: Tensor) -> tuple[Split, Tensor | None]:
        config, settings = self.model.config, self.settings
        if not config.mask_channel:
            return masks.split(draw, config.grid, settings.masks, settings.mask_ratio), None
        missing = masks.missing_pixels(draw, config.image_size, config.patch_size, settings.masks, settings.mask_ratio)
        return Split.by_pixels(missing, config.patch_size), missing

    def losses(self, pixels: Tensor, drawn: Drawn, clip_target: Tensor | None = None) -> dict[str, Tensor]:
        """clip_target: (B, N, clip_width), features of all patches, None: the teacher's."""
        if clip_target is None and self.teacher is not None:
            with torch.no_grad():
                clip_target = self.teacher.encode_patches(pixels)
        counts, pixel_means, clip_means, painted = [], [], [], []
        for rows, split in masks.in_parts(drawn.split, self.settings.parts):
            features = None if clip_target is None else clip_target[rows]
            images, part = pixels[rows], drawn.part(rows, split)
            context = self.model.encode(images, split, missing=part.missing)
            answer: Denoising = self.model(images, split, part.t, part.noise, features, part.missing, context)
            weighted = self.settings.min_snr is not None or part.missing is not None
            pixel_means.append(self._weighted(answer, images, part) if weighted else answer.loss_pixel)
            clip_means += [] if answer.loss_clip is None else [answer.loss_clip]
            counts.append(self._to_be_made(part).mean(dim=-1).sum())
            if self.painting is not None and part.visit is not None:
                made = self._to_be_made(part) > 0
                painted.append((rows, self.painting.paint(self.model, images, split, context, part.noise, part.visit, made)))
        count = torch.stack(counts)  # (parts,)
        share = (count / count.sum()).to(pixel_means[0].dtype)
        pixel = term_of_mean((torch.stack(pixel_means) * share).sum(), count.sum())
        if self.painting is not None:
            order = torch.cat([rows for rows, _ in painted]).argsort()
            terms = self.painting(torch.cat([pictures for _, pictures in painted])[order], pixels, self._missing(drawn))
            return {**terms, "loss": pixel + terms["loss"], "loss_pixel": pixel.detach()}
        if not clip_means:
            return {"loss": pixel}
        clip = term_of_mean((torch.stack(clip_means) * share).sum(), count.sum())
        loss = self.settings.pixel_weight * pixel + self.model.config.clip_weight * clip
        return {"loss": loss, "loss_pixel": pixel.detach(), "loss_clip": clip.detach()}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Images that the encoder saw, and with the masked patches as predicted in one step from pure noise; of models that fill holes."""
        config, preprocess, draw = self.model.config, self._facts.preprocess, batch["draw"]
        if preprocess is None or self.input != "pixels" or config.normalise_patches or config.target is not Target.X0:
            return {}
        drawn, pixels = self.drawn(draw), batch["pixels"]
        split = drawn.split
        last = torch.full_like(draw, config.schedule.steps - 1)
        filled = self.model.predict(drawn.noise, last, self.model.encode(pixels, split, missing=drawn.missing)).patches
        real = torch.ones_like(filled[..., :1]) if split.masked_size is None else split.masked_size
        patches = self.model.patchify(pixels)
        index = split.masked.unsqueeze(-1).expand_as(filled)  # padding points at the first patch, and adds nothing there
        hidden = torch.zeros_like(patches).scatter_add(1, index, real.expand_as(filled)) > 0
        if drawn.missing is not None:
            hidden &= self.model.patchify(drawn.missing.unsqueeze(1).expand(-1, config.channels, -1, -1))
        made = torch.zeros_like(patches).scatter_add(1, index, filled * real)
        images = {"masked": patches.masked_fill(hidden, 0.0), "predicted": torch.where(hidden, made, patches)}
        return {name: to_pixels(self.model.unpatchify(image), preprocess.mean, preprocess.std) for name, image in images.items()}

    def _weighted(self, answer: Denoising, pixels: Tensor, part: Drawn) -> Tensor:
        """The pixel loss over what is to be made, with each sample's error weighted by its time."""
        config, settings = self.model.config, self.settings
        wanted = self.model.targets(pixels, part.split) if config.target is Target.X0 else part.noise
        made = self._to_be_made(part)  # (B, M, 1) or (B, M, P)
        errors = (made * (answer.prediction.patches - wanted).square()).mean(dim=-1)  # (B, M)
        if settings.min_snr is not None:
            signal = config.schedule.alphas_bar(part.t.device)[part.t]
            ratio = signal / (1 - signal)
            weight = ratio.clamp(min=settings.least_weight, max=settings.min_snr)
            weight = weight if config.target is Target.X0 else weight / ratio
            errors = errors * weight.to(errors).unsqueeze(1)
        return errors.sum() / made.mean(dim=-1).sum()

    def _to_be_made(self, part: Drawn) -> Tensor:
        """1 for what counts in the loss, 0 for padding and known pixels: (B, M, 1), or (B, M, P) with a mask of pixels."""
        split = part.split
        real = torch.ones_like(split.masked, dtype=torch.float32).unsqueeze(-1) if split.masked_size is None else split.masked_size
        if part.missing is None:
            return real
        missing = part.missing.unsqueeze(1).expand(-1, self.model.config.channels, -1, -1)
        return real * take(self.model.patchify(missing.float()), split.masked)

    def _missing(self, drawn: Drawn) -> Tensor:
        """bool (B, H, W), the pixels that are to be made."""
        config = self.model.config
        return drawn.split.missing_pixels(config.grid[1:], config.patch_size) if drawn.missing is None else drawn.missing

    def _check(self, clip_width: int | None) -> None:
        """Raises ValueError."""
        if self.painting is not None:
            self.painting.check(self.model.config)
        if self.teacher is None:
            return
        config, grid = self.teacher.config, self.model.config.grid[1:]
        if clip_width != config.features:
            raise ValueError(f"teacher: its patches have {config.features} channels, and model.clip_width is {clip_width}")
        if self.input != "pixels" or config.grid != grid:
            raise ValueError(f"teacher: it sees {config.grid} patches of an image, the model {grid} of {self.input}")


def _vision(teacher: nn.Module) -> ViT:
    """Raises ValueError."""
    tower = getattr(teacher, "vision", teacher)
    if not isinstance(tower, ViT):
        raise ValueError(f"teacher: a bundle of a ViT, or of a pair with one, is needed, not {type(teacher).__name__}")
    return tower


def build(settings: DiffMAESettings, model: nn.Module, facts: Facts) -> Diffusion:
    """Raises ValueError, DataError."""
    teacher = None if settings.teacher is None else load_teacher(settings.teacher)
    network: DiffMAE = expect(settings.kind, model, DiffMAE)
    if network.config.clip_width and teacher is None:
        raise ValueError("objective.teacher: a model with clip_width needs one")
    painting = None if settings.painting is None else Painting.of(settings.painting, network.config, facts.cache)
    return Diffusion(network, settings, teacher, facts, painting)
