"""The part of an image or clip that is filled. Windows of the network's size are cut out of it, filled and pasted back.

An image is a clip of one frame here. Shapes: T frames and h × w pixels of a canvas, S of a window; n samples of the same hole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from models.layers.masked_encoder import gather_tokens
from models.layers.patches import patchify_tubes, to_pixels
from models.systems.diffmae.masks import PatchSplit
from models.systems.diffmae.model import DiffMAE
from models.systems.diffmae.sampling import KnownPixels, paste_patches

KEPT_SHARE = 0.5
"""Minimum share of a patch inside the canvas for the network to see it."""

Place = tuple[int, int]
"""Top and left of a window."""


@dataclass(frozen=True)
class CanvasWindow:
    """The part of a canvas that the network sees at one place."""

    images: Tensor
    """(n, channels, S, S), or (n, channels, T, S, S) of clips, normalised float32; n is 1 while all samples are alike."""
    split: PatchSplit
    """Split of one sample: all have the same hole."""
    known_pixels: KnownPixels
    """Known pixels inside masked patches, which are not generated: patches (n, M, P), generated (1, M, P)."""


@dataclass(frozen=True)
class Canvas:
    """Pixels and their hole. Immutable: pasting returns a new canvas."""

    pixels: Tensor
    """uint8 (n, T, h, w, channels); n is 1 until samples differ."""
    missing: Tensor
    """bool (T, h, w), pixels to generate. The values of `pixels` there have no influence."""

    @staticmethod
    def from_pixels(pixels: Tensor, missing: Tensor) -> Canvas:
        """Accept an image, uint8 (h, w, channels) and missing (h, w), or a clip, (T, h, w, channels) and (T, h, w)."""
        if pixels.dim() == 3:
            pixels, missing = pixels.unsqueeze(0), missing.unsqueeze(0)
        if missing.shape != pixels.shape[:-1]:
            raise ValueError(f"missing: shape {tuple(missing.shape)} where {tuple(pixels.shape[:-1])} is needed")
        return Canvas(pixels.unsqueeze(0), missing > 0)

    @cached_property
    def nbytes(self) -> int:
        return self.pixels.nbytes + self.missing.nbytes

    def window(self, model: DiffMAE, at: Place) -> CanvasWindow:
        """Cut out the window at this place. Beyond the canvas its edge is repeated, and patches that lie mostly there are left out."""
        config = model.config
        rows, columns = self._reach(model, at)
        pixels = self.pixels[:, :, rows][:, :, :, columns]  # (n, T, S, S, channels)
        missing = self.missing[:, rows][:, :, columns]  # (T, S, S)
        mean, std = (torch.tensor(values, device=pixels.device) for values in (config.mean, config.std))
        images = ((pixels.float() / 255 - mean) / std).movedim(-1, 1)  # (n, channels, T, S, S)
        spread = missing.expand(1, config.channels, *missing.shape)
        generated = patchify_tubes(spread, config.patch_frames, config.patch_size)  # (1, N, P)
        masked = generated.any(dim=-1)
        split = PatchSplit.from_masks(~masked & self._select_patches(model, at), masked)
        patches = patchify_tubes(images, config.patch_frames, config.patch_size)
        known_pixels = KnownPixels(gather_tokens(patches, split.masked.expand(len(patches), -1)), gather_tokens(generated, split.masked))
        return CanvasWindow(images if config.frames else images.squeeze(2), split, known_pixels)

    def paste(self, model: DiffMAE, at: Place, window: CanvasWindow, patches: Tensor) -> Canvas:
        """Replace missing pixels by normalised patches (n, M, P) of the window's masked positions. Other pixels stay as they are."""
        samples = len(patches)
        split = replace(window.split, masked=window.split.masked.expand(samples, -1))
        images = window.images.expand(samples, *window.images.shape[1:])
        generated = to_pixels(paste_patches(model, images, split, patches), model.config.mean, model.config.std)
        generated = generated if model.config.frames else generated.unsqueeze(1)  # (n, T, S, S, channels)
        height, width = self._inside(model, at)
        region = self._region(model, at)
        missing = self.missing.clone()
        pixels = self.pixels.repeat(samples // len(self.pixels), 1, 1, 1, 1)
        pixels[region] = torch.where(missing[region[1:]].unsqueeze(-1), generated[:, :, :height, :width], pixels[region])
        missing[region[1:]] = False
        return Canvas(pixels, missing)

    def part(self, model: DiffMAE, at: Place) -> Tensor:
        """Return the pixels that the window covers, (n, T, h', w', channels)."""
        return self.pixels[self._region(model, at)]

    def _region(self, model: DiffMAE, at: Place) -> tuple[slice, ...]:
        (top, left), (height, width) = at, self._inside(model, at)
        return slice(None), slice(None), slice(top, top + height), slice(left, left + width)

    def _reach(self, model: DiffMAE, at: Place) -> tuple[Tensor, Tensor]:
        """Return the row and column of the canvas for each row and column of the window: (S,) int64 each."""
        rows, columns = (
            (torch.arange(side, device=self.pixels.device) + first).clamp(max=limit - 1)
            for side, first, limit in zip(model.config.image_size, at, self.missing.shape[1:], strict=True)
        )
        return rows, columns

    def _inside(self, model: DiffMAE, at: Place) -> Place:
        """Return height and width of the part of the window that lies on the canvas."""
        height, width = (
            min(side, limit - first) for side, first, limit in zip(model.config.image_size, at, self.missing.shape[1:], strict=True)
        )
        return height, width

    def _select_patches(self, model: DiffMAE, at: Place) -> Tensor:
        """Find patches with enough area on the canvas: bool (1, N). If it is thinner than a patch, the first row or column counts."""
        times, rows, columns = model.config.grid
        size = model.config.patch_size
        shares = []
        for count, inside in zip((rows, columns), self._inside(model, at), strict=True):
            share = ((inside - size * torch.arange(count, device=self.pixels.device)) / size).clamp(0, 1)
            share[0] = 1.0
            shares.append(share)
        selected = shares[0].unsqueeze(1) * shares[1] >= KEPT_SHARE
        return selected.expand(1, times, rows, columns).flatten(1)
