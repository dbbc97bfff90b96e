"""Forward passes of MAViL and Audio-MAE on random input."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models.registry import ForwardCall, InputMaker
from models.systems.mavil.pretraining import MaskNoise


def random_audio_and_video(config: Any, make: InputMaker) -> tuple[Tensor, Tensor]:
    audio = make.normal(1, config.audio_frames, config.mel_bins)
    return audio, make.normal(3, config.frames, config.image_size, config.image_size)


def audio_and_video(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    audio, video = random_audio_and_video(config, make)
    if not config.sees:
        return lambda: model.forward_audio(audio)
    return lambda: model(audio, video)


def masked_audio_and_video(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    audio, video = random_audio_and_video(config, make)
    audio_patches, video_patches = config.audio_patches, config.video_patches
    noise = MaskNoise(
        (make.uniform(audio_patches), make.uniform(audio_patches)), (make.uniform(video_patches), make.uniform(video_patches))
    )
    return lambda: model(audio, video, noise)


def masked_audio(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    audio, noise = make.normal(1, config.audio_frames, config.mel_bins), make.uniform(config.patches)
    return lambda: model(audio, noise)
