"""Random input for one denoising step, to count its operations and to time it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.registry import ForwardCall, InputMaker
from models.systems.diffmae.masks import PatchSplit
from models.systems.diffmae.model import DiffMAE, DiffMAEConfig
from models.systems.diffmae.system import MASKED


@dataclass(frozen=True)
class DummyMaskedBatch:
    pixels: Tensor
    split: PatchSplit
    noisy: Tensor
    times: Tensor

    @staticmethod
    def draw(config: DiffMAEConfig, make: InputMaker) -> DummyMaskedBatch:
        noise = make.uniform(config.patches)
        split = PatchSplit.from_noise(noise, MASKED)
        frames = () if config.frames is None else (config.frames,)
        return DummyMaskedBatch(
            make.normal(config.channels, *frames, *config.image_size),
            split,
            make.normal(split.masked.shape[1], config.patch_values),
            torch.full((len(noise),), config.schedule.steps // 2, device=noise.device),
        )


def one_step(model: DiffMAE, config: DiffMAEConfig, make: InputMaker) -> ForwardCall:
    """Return a call that encodes the visible patches and denoises the others once."""
    batch = DummyMaskedBatch.draw(config, make)
    return lambda: model.predict(batch.noisy, batch.times, model.encode(batch.pixels, batch.split))
