"""Forward passes of MAViL and Audio-MAE on random input."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models.registry import Call, Maker
from models.systems.mavil.pretraining import Noise


def heard_and_seen(config: Any, make: Maker) -> tuple[Tensor, Tensor]:
    audio = make.normal(1, config.audio_frames, config.mel_bins)
    return audio, make.normal(3, config.frames, config.image_size, config.image_size)


def sound_and_clips(model: Any, config: Any, make: Maker) -> Call:
    audio, video = heard_and_seen(config, make)
    if not config.sees:
        return lambda: model.hear(audio)
    return lambda: model(audio, video)


def masked_sound_and_clips(model: Any, config: Any, make: Maker) -> Call:
    audio, video = heard_and_seen(config, make)
    heard, seen = config.audio_patches, config.video_patches
    noise = Noise((make.uniform(heard), make.uniform(heard)), (make.uniform(seen), make.uniform(seen)))
    return lambda: model(audio, video, noise)


def masked_sound(model: Any, config: Any, make: Maker) -> Call:
    audio, noise = make.normal(1, config.audio_frames, config.mel_bins), make.uniform(config.patches)
    return lambda: model(audio, noise)
