"""State of an inpainting job, and the grouping of jobs into batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.stepwise import Tensors
from models.systems.diffmae.canvas import Canvas, CanvasWindow, Place
from models.systems.diffmae.decoder import DecoderContext
from models.systems.diffmae.diffusion import SamplerTable
from models.systems.diffmae.exemplar_fill import ExemplarCrop
from models.systems.diffmae.model import DiffMAE
from models.systems.diffmae.sampling import KnownPixels

MIN_SIZE_RATIO = 0.75
"""Minimum patches of a hole in a padded batch, as a share of those of its largest hole."""
SAMPLE_COST = 8
"""Fixed cost of a sample in a step, in patches: its attention and other work for it alone."""


@dataclass(frozen=True)
class InpaintRequest:
    """The constants of a job: no step changes them."""

    windows: tuple[Place, ...]
    """Places on the canvas, in the order of filling; empty if nothing is missing."""
    reverse: SamplerTable
    noisy: tuple[bool, ...]
    """Whether each step adds noise."""
    seeds: Tensor
    """(n,) int64, of the samples."""
    temperature: float
    """Share of the drawn noise that is used."""
    inject_known: bool
    alone: bool
    """Whether no other job may share its batches, so that results are the same bytes each time."""
    returned: Tensors
    crop: ExemplarCrop | None = None
    """Crop whose patches then replace the network's result in its hole."""

    @property
    def samples(self) -> int:
        return len(self.seeds)

    @property
    def total(self) -> int:
        return max(1, len(self.windows) * len(self.reverse))


@dataclass(frozen=True)
class WindowDenoising:
    """One window on its way from noise to pixels."""

    at: Place
    window: CanvasWindow
    context: DecoderContext
    """Context of one sample while all are equal, else of n."""
    x: Tensor
    """(n, M, P) float32."""
    executed: int = 0


@dataclass(frozen=True)
class InpaintState:
    request: InpaintRequest
    canvas: Canvas
    finished: int = 0
    current: WindowDenoising | None = None
    """None if nothing is missing."""

    @property
    def done(self) -> int:
        return self.finished * len(self.request.reverse) + (self.current.executed if self.current else 0)

    @property
    def total(self) -> int:
        return self.request.total

    @property
    def nbytes(self) -> int:
        nbytes = self.canvas.nbytes + sum(array.nbytes for array in self.request.returned.values())
        nbytes += 0 if self.request.crop is None else self.request.crop.nbytes
        if self.current is None:
            return nbytes
        window = self.current.window
        return nbytes + self.current.context.nbytes + self.current.x.nbytes + window.images.nbytes + window.known_pixels.nbytes

    @property
    def next_step(self) -> SamplerTable:
        """The next reverse step, a row for each sample."""
        assert self.current is not None
        row = len(self.request.reverse) - 1 - self.current.executed
        return self.request.reverse.rows(torch.full((self.request.samples,), row))

    @property
    def adds_noise(self) -> bool:
        assert self.current is not None
        return self.request.noisy[-1 - self.current.executed]

    @property
    def cost(self) -> float:
        """Cost of the next step, in noisy patches."""
        return self.current.x.shape[0] * (self.current.x.shape[1] + SAMPLE_COST) if self.current else 1.0


@dataclass(frozen=True)
class PaddedBatch:
    """The next step of several jobs. R: samples of all of them; M: patches of the largest hole, others are padded."""

    fillings: tuple[InpaintState, ...]
    current: tuple[WindowDenoising, ...]
    x: Tensor
    """(R, M, P)."""
    steps: SamplerTable
    """R rows."""
    context: DecoderContext
    known_pixels: KnownPixels

    @staticmethod
    def join(fillings: Sequence[InpaintState]) -> PaddedBatch:
        """Join jobs that all have a current window."""
        current = tuple(filling.current for filling in fillings if filling.current is not None)
        contexts = [_expand(now.context, len(now.x)) for now in current]
        known_pixels = [known_pixels_of(filling, now) for filling, now in zip(fillings, current, strict=True)]
        return PaddedBatch(
            fillings=tuple(fillings),
            current=current,
            x=_pad_and_concat([now.x for now in current]),
            steps=SamplerTable.join([filling.next_step for filling in fillings]).to(current[0].x.device),
            context=contexts[0] if len(contexts) == 1 else DecoderContext.join(contexts),
            known_pixels=KnownPixels(
                _pad_and_concat([one.patches for one in known_pixels]), _pad_and_concat([one.generated for one in known_pixels])
            ),
        )

    def predict(self, model: DiffMAE, times: Tensor | None) -> Tensor:
        return model.predict(self.x, self.steps.time, self.context, times=times).patches

    def jobs(self) -> Iterator[tuple[InpaintState, WindowDenoising, tuple[slice, ...]]]:
        """Yield each job with its rows and patches in the batch."""
        start = 0
        for filling, now in zip(self.fillings, self.current, strict=True):
            samples, count = now.x.shape[:2]
            yield filling, now, (slice(start, start + samples), slice(count))
            start += samples


def known_pixels_of(filling: InpaintState, now: WindowDenoising) -> KnownPixels:
    """Return the known pixels in its masked patches, (n, M, P); none of them if the job does not inject them."""
    known_pixels = now.window.known_pixels
    generated = known_pixels.generated if filling.request.inject_known else torch.ones_like(known_pixels.generated)
    return KnownPixels(known_pixels.patches.expand(now.x.shape), generated.expand(now.x.shape))


def group_by_visible_count(fillings: Sequence[InpaintState], windows: Mapping[int, CanvasWindow]) -> list[list[int]]:
    """Group indices of windows with equal numbers of visible and masked patches, so that encoding needs no padding."""
    batches: dict[tuple[int, ...], list[int]] = {}
    for index, window in windows.items():
        sizes = (window.split.visible.shape[1], window.split.masked.shape[1])
        batches.setdefault((*sizes, index) if fillings[index].request.alone else sizes, []).append(index)
    return list(batches.values())


def group_by_hole_size(fillings: Sequence[InpaintState], least_share: float = MIN_SIZE_RATIO) -> list[list[int]]:
    """Group indices of jobs with holes of similar size, so that little is padded. Jobs without a current window are left out.

    least_share: minimum patches of a hole, as a share of those of the largest in its group; 0 puts all into one group.
    """
    sized = [(filling.current.x.shape[1], index) for index, filling in enumerate(fillings) if filling.current is not None]
    alone = [[index] for _, index in sized if fillings[index].request.alone]
    shared: list[list[int]] = []
    largest = 0
    for count, index in sorted(sized, reverse=True):
        if fillings[index].request.alone:
            continue
        if shared and count >= least_share * largest:
            shared[-1].append(index)
        else:
            shared.append([index])
            largest = count
    return shared + alone


def _expand(context: DecoderContext, samples: int) -> DecoderContext:
    return context if len(context.positions) == samples else context.repeat(samples)


def _pad_and_concat(parts: Sequence[Tensor]) -> Tensor:
    """Join parts (n, M, P) to (R, M, P), padded with zeros to the largest M."""
    max_patches = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, max_patches - part.shape[1])) for part in parts])
