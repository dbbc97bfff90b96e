"""MAViL and its parent Audio-MAE, and statistics of the data that they were trained on. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.bundle_schema import Clip, Sound
from models.registry import Architecture, BundleDefaults, DummyForward, SizeTable, System


@dataclass(frozen=True)
class LogMelStats:
    """Mean and standard deviation of the log-mel values of a data set.

    The authors report that each clip's own statistics cost about 6 mAP.
    """

    mean: float
    std: float


AUDIOSET = LogMelStats(-4.2677393, 4.5689974)


def clip_at_2_fps(config: Any) -> Clip:
    return Clip(frames=config.frames, stride=1, rate=2)


def video_clip(config: Any) -> Clip | None:
    return clip_at_2_fps(config) if config.sees else None


def frame_size(config: Any) -> tuple[int, int] | None:
    return (config.image_size, config.image_size) if config.sees else None


def spectrogram_section(config: Any) -> Sound:
    return Sound(frames=config.audio_frames, mel_bins=config.mel_bins, mean=AUDIOSET.mean, std=AUDIOSET.std)


def token_count(config: Any) -> int:
    video_tokens = config.video_patches + 1 if config.sees else 0
    return int(config.audio_patches + 1 + video_tokens)


SYSTEM = System(
    architectures=(
        Architecture(
            name="mavil",
            model="models.systems.mavil.model:MAViL",
            bundle_defaults=BundleDefaults(
                task=lambda config: "audio-visual",
                size=frame_size,
                clip=video_clip,
                sound=spectrogram_section,
                classes=lambda config: int(config.classes),
            ),
            dummy_forward=DummyForward("clip", token_count, "models.systems.mavil.pretraining:audio_and_video"),
            steps={"audio-visual": "models.systems.mavil.steps:mavil_steps"},
            precise_tasks=frozenset({"audio-visual"}),
            route_of=lambda config: "classify",
            fuses=lambda config: int(config.get("fusion_depth", 3)) > 0,
        ),
        Architecture(
            name="mavil_pretraining",
            model="models.systems.mavil.pretraining:MAViLPretraining",
            bundle_defaults=BundleDefaults(lambda config: "autoencode", clip=clip_at_2_fps, sound=spectrogram_section),
            dummy_forward=DummyForward(
                unit="clip",
                tokens=lambda config: int(config.visible(config.audio_patches) + config.visible(config.video_patches) + 2),
                call="models.systems.mavil.pretraining:masked_audio_and_video",
            ),
        ),
        Architecture(
            name="audio_mae",
            model="models.systems.mavil.audio_mae:AudioMAE",
            bundle_defaults=BundleDefaults(lambda config: "autoencode", size=lambda config: None, sound=spectrogram_section),
            dummy_forward=DummyForward("sound", lambda config: int(config.visible + 1), "models.systems.mavil.pretraining:masked_audio"),
        ),
    ),
    sizes=(
        SizeTable("MAViL", "mavil", "arXiv 2212.08071", "models.systems.mavil.model:SIZES"),
        SizeTable("MAViL", "mavil_pretraining", "arXiv 2212.08071", "models.systems.mavil.pretraining:PRETRAINING_SIZES"),
        SizeTable("Audio-MAE", "audio_mae", "arXiv 2207.06405", "models.systems.mavil.audio_mae:SIZES"),
    ),
    families={
        "mavil": "models.systems.mavil.checkpoint:FAMILY",
        "mavil_pretrained": "models.systems.mavil.checkpoint:PRETRAINING",
        "audio_mae": "models.systems.mavil.checkpoint:AUDIO_MAE",
    },
)
