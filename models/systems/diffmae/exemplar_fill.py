"""Holes that are filled with patches of the image around them, instead of by the network or after it. A step fills one pyramid level.

A level runs in a confined process (`models.media.patchmatch`), on the CPU whatever the network's device; one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.layers.stepwise import Tensors
from models.media import patchmatch
from models.media.patchmatch import PyramidLevel


@dataclass(frozen=True)
class ExemplarCrop:
    """An image to copy from, and the hole in it that is to be filled."""

    pixels: NDArray[np.uint8]
    """(h, w, 3)."""
    missing: NDArray[np.bool_]
    """(h, w)."""

    @staticmethod
    def from_job(job: Tensors) -> ExemplarCrop:
        """Read a job's `detail`, uint8 (h, w, 3), and `detail_missing`, (h, w)."""
        return ExemplarCrop(job["detail"].cpu().numpy(), job["detail_missing"].cpu().numpy() > 0)

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + self.missing.nbytes


@dataclass(frozen=True)
class ExemplarState:
    """Progress of one job: level by level, sample after sample."""

    crop: ExemplarCrop
    seeds: tuple[int, ...]
    reductions: tuple[int, ...]
    returned: Tensors
    starts: NDArray[np.uint8] | None = None
    """(n, h, w, 3), the network's result; None if every sample starts from nothing."""
    before: int = 0
    """Steps that the network took."""
    finished: tuple[NDArray[np.uint8], ...] = ()
    """Finished samples, (h, w, 3) each."""
    latest: PyramidLevel | None = None
    number: int = 0

    @staticmethod
    def start(
        crop: ExemplarCrop, seeds: Sequence[int], returned: Tensors, starts: NDArray[np.uint8] | None = None, before: int = 0
    ) -> ExemplarState:
        least_side = patchmatch.MIN_SIDE_PIXELS if starts is None else max(starts.shape[1:3]) // patchmatch.MAX_NETWORK_REDUCTION
        return ExemplarState(crop, tuple(seeds), patchmatch.reductions(crop.missing, least_side), returned, starts, before)

    @property
    def done(self) -> int:
        return self.before + len(self.finished) * len(self.reductions) + self.number

    @property
    def total(self) -> int:
        return self.before + len(self.seeds) * len(self.reductions)

    @property
    def nbytes(self) -> int:
        nbytes = self.crop.nbytes + sum(sample.nbytes for sample in self.finished)
        return nbytes + (0 if self.starts is None else self.starts.nbytes) + (0 if self.latest is None else self.latest.nbytes)

    @property
    def is_done(self) -> bool:
        return len(self.finished) == len(self.seeds)

    def next(self) -> ExemplarState:
        """Fill one more level. Raises `models.processes.confined_process.ProcessDied` if its process dies."""
        sample = len(self.finished)
        start = self.latest if self.latest is not None or self.starts is None else self.starts[sample]
        level = patchmatch.fill_level(self.crop.pixels, self.crop.missing, self.reductions[self.number], self.seeds[sample], start)
        if self.number + 1 < len(self.reductions):
            return replace(self, latest=level, number=self.number + 1)
        filled = np.where(self.crop.missing[..., np.newaxis], level.pixels, self.crop.pixels)
        return replace(self, finished=(*self.finished, filled), latest=None, number=0)

    def answer(self) -> dict[str, Tensor]:
        return {"filled": torch.from_numpy(np.stack(self.finished)), **self.returned}
