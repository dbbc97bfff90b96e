"""A model at work on random input of its own size: what its forward pass costs, counted on no storage, and what a benchmark times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as meta_config
from torch.utils.flop_counter import FlopCounterMode

from models.diffmae.masks import Split
from models.diffmae.model import DiffMAE, DiffMAEConfig
from models.lart.model import Tracks
from models.mavil.pretraining import Noise
from models.mcc.model import MCC, MCCConfig
from models.pairs.maws import TEXT_LENGTH
from models.registry import ARCHITECTURES

QUERIES = 2048
"""Points that one scene of MCC is asked about."""
CAPTION = 32
"""Tokens of CiT's captions."""
MASKED = 0.75
"""Share of the patches that DiffMAE is to fill."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Maker:
    """Random input in a model's precision and on its device."""

    batch: int
    dtype: torch.dtype
    device: torch.device

    def normal(self, *shape: int) -> Tensor:
        """(batch, *shape)."""
        return torch.randn(self.batch, *shape, dtype=self.dtype, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """(batch, *shape) of noise by which patches are chosen: float32, since ties are decided by their order."""
        return torch.rand(self.batch, *shape, device=self.device)

    def words(self, length: int) -> Tensor:
        return torch.full((self.batch, length), 5, dtype=torch.int64, device=self.device)


@dataclass(frozen=True)
class Native:
    """How an architecture is used."""

    unit: str
    """What one row of a batch is; just "sample" where the config tells pictures from clips."""
    tokens: Callable[[Any], int]
    """Of a config: how many the first block sees."""
    call: Callable[[nn.Module, Any, Maker], Call]
    """(model, its config, maker) → a forward pass over one batch."""


@dataclass(frozen=True)
class Cost:
    parameters: int
    flops: int
    """Of one sample, a multiply-add counted as two."""
    tokens: int


def prepare(architecture: str, model: nn.Module, batch: int) -> Call:
    """A forward pass over one batch of input that lies ready."""
    parameter = next(model.parameters())
    return NATIVE[architecture].call(model, model.config, Maker(batch, parameter.dtype, parameter.device))


def cost(architecture: str, config: Any) -> Cost:
    """Of a config's model at its native size."""
    model = without_storage(architecture, config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, count_flops(lambda: prepare(architecture, model, 1)), NATIVE[architecture].tokens(config))


def without_storage(architecture: str, config: Any) -> nn.Module:
    """A model on the meta device, which counts and does not compute."""
    with torch.device("meta"):
        model: nn.Module = ARCHITECTURES[architecture].build(config)
    return model.eval().requires_grad_(False)


def count_flops(prepared: Callable[[], Call]) -> int:
    """Of a call that `prepared` makes for a model without storage: on a device, fused attention would not be counted."""
    # MCC embeds only windows that hold points: without values, take all of them
    with meta_config.patch(meta_nonzero_assume_all_nonzero=True), torch.inference_mode():  # type: ignore[attr-defined]
        call = prepared()
        with FlopCounterMode(display=False) as counter:
            call()
    return int(counter.get_total_flops())


def _pictures(model: nn.Module, config: Any, make: Maker) -> Call:
    pixels = make.normal(3, config.image_size, config.image_size)
    return lambda: model(pixels)


def _masked_pictures(model: nn.Module, config: Any, make: Maker) -> Call:
    pixels, noise = make.normal(3, config.image_size, config.image_size), make.uniform(config.patches)
    return lambda: model(pixels, noise)


def _clips(model: nn.Module, config: Any, make: Maker) -> Call:
    pixels = make.normal(3, config.frames, config.image_size, config.image_size)
    return lambda: model(pixels)


def _masked_clips(model: nn.Module, config: Any, make: Maker) -> Call:
    pixels, noise = make.normal(3, config.frames, config.image_size, config.image_size), make.uniform(config.patches)
    return lambda: model(pixels, noise)


def _pictures_or_clips(model: nn.Module, config: Any, make: Maker) -> Call:
    return (_pictures if config.pictures else _clips)(model, config, make)


def _sound_and_clips(model: nn.Module, config: Any, make: Maker) -> Call:
    audio, video = _heard_and_seen(config, make)
    return lambda: model(audio, video)


def _masked_sound_and_clips(model: nn.Module, config: Any, make: Maker) -> Call:
    audio, video = _heard_and_seen(config, make)
    heard, seen = config.audio_patches, config.video_patches
    noise = Noise((make.uniform(heard), make.uniform(heard)), (make.uniform(seen), make.uniform(seen)))
    return lambda: model(audio, video, noise)


def _heard_and_seen(config: Any, make: Maker) -> tuple[Tensor, Tensor]:
    audio = make.normal(1, config.audio_frames, config.mel_bins)
    return audio, make.normal(3, config.frames, config.image_size, config.image_size)


def _masked_sound(model: nn.Module, config: Any, make: Maker) -> Call:
    audio, noise = make.normal(1, config.audio_frames, config.mel_bins), make.uniform(config.patches)
    return lambda: model(audio, noise)


def _pairs(length: Callable[[Any], int]) -> Callable[[nn.Module, Any, Maker], Call]:
    """A picture and a text each."""

    def call(model: nn.Module, config: Any, make: Maker) -> Call:
        pixels, words = make.normal(3, config.image_size, config.image_size), make.words(length(config))
        return lambda: model(pixels, words)

    return call


@dataclass(frozen=True)
class HalfMasked:
    """What DiffMAE is given."""

    pixels: Tensor
    split: Split
    noisy: Tensor
    times: Tensor

    @staticmethod
    def of(config: DiffMAEConfig, make: Maker) -> HalfMasked:
        split = Split.by_noise(make.uniform(config.patches), MASKED)
        frames = () if config.frames is None else (config.frames,)
        return HalfMasked(
            make.normal(config.channels, *frames, *config.image_size),
            split,
            make.normal(split.masked.shape[1], config.patch_values),
            torch.full((make.batch,), config.schedule.steps // 2, device=make.device),
        )


def _one_step(model: nn.Module, config: Any, make: Maker) -> Call:
    """Encode the visible patches, denoise the others once."""
    assert isinstance(model, DiffMAE)
    given = HalfMasked.of(config, make)
    return lambda: model.predict(given.noisy, given.times, model.encode(given.pixels, given.split))


def seen_scene(config: MCCConfig, make: Maker) -> tuple[Tensor, Tensor]:
    """MCC's picture and the points seen in it."""
    return make.normal(3, config.image_size, config.image_size), make.normal(config.seen_size, config.seen_size, 3)


def _scene(model: nn.Module, config: Any, make: Maker) -> Call:
    assert isinstance(model, MCC)
    pixels, seen = seen_scene(config, make)
    queries = make.normal(QUERIES, 3)
    return lambda: model(pixels, seen, queries)


def _tracks(model: nn.Module, config: Any, make: Maker) -> Call:
    """One person each."""

    def feature(size: Any) -> Tensor | None:
        return None if size is None else make.normal(config.frames, 1, size.values)

    pose, detected = feature(config.pose), torch.ones(make.batch, config.frames, 1, 1, device=make.device)
    assert pose is not None
    tracks = Tracks(pose, detected, feature(getattr(config, "joints", None)), feature(getattr(config, "appearance", None)))
    return lambda: model(tracks)


def _masked_crops(model: nn.Module, config: Any, make: Maker) -> Call:
    crops = make.normal(4, config.size, config.size)
    return lambda: model(crops)


def _grid(config: Any) -> int:
    times, rows, columns = config.patch_grid
    return int(times * rows * columns + getattr(config, "special_tokens", 0))


def _with_class(config: Any) -> int:
    return int(config.patches + config.special_tokens)


def _vision(config: Any) -> int:
    return _with_class(config.vision)


def _both_halves(config: Any) -> int:
    return int(config.audio_patches + config.video_patches + 2)


NATIVE: Mapping[str, Native] = {
    "vit": Native("picture", _with_class, _pictures),
    "mae": Native("picture", lambda config: config.visible + 1, _masked_pictures),
    "video_mae": Native("clip", _with_class, _clips),
    "video_mae_pretraining": Native("clip", lambda config: config.visible + int(config.class_token), _masked_clips),
    "mavil": Native("clip", _both_halves, _sound_and_clips),
    "mavil_pretraining": Native(
        "clip", lambda config: config.visible(config.audio_patches) + config.visible(config.video_patches) + 2, _masked_sound_and_clips
    ),
    "audio_mae": Native("sound", lambda config: config.visible + 1, _masked_sound),
    "maws_clip": Native("pair", _vision, _pairs(lambda config: TEXT_LENGTH)),
    "flip": Native("pair", _vision, _pairs(lambda config: int(config.text_length))),
    "cit": Native("pair", _vision, _pairs(lambda config: CAPTION)),
    "diffmae": Native("sample", lambda config: int(config.patches * (1 - MASKED)) + 1, _one_step),
    "mcc": Native("scene", lambda config: 2 * (config.side**2 + 1), _scene),
    "mvit": Native("sample", _grid, _pictures_or_clips),
    "rev_mvit": Native("sample", _grid, _pictures_or_clips),
    "hmr2": Native("crop", lambda config: config.grid[0] * config.grid[1], _pictures),
    "lart": Native("track", lambda config: int(config.frames), _tracks),
    "phalp_pose": Native("track", lambda config: int(config.frames), _tracks),
    "phalp_appearance": Native("crop", lambda config: 0, _masked_crops),
}
"""Architecture → how it is used. Pre-training and DiffMAE count the tokens that the encoder sees."""
