"""What goes into a bundle beside the weights: for each architecture, what its models are for, and what they see and hear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.bundle import Clip, Sound, Task
from models.mavil.inputs import AUDIOSET
from models.people import ava

SLOWFAST_STRIDES = {32: 3.0, 40: 3.0}
"""Frames of a published clip → every how many of a film's; 4 for all others."""


@dataclass(frozen=True)
class Purpose:
    """Functions of an architecture's config."""

    task: Callable[[Any], Task]
    size: Callable[[Any], tuple[int, int] | None] = lambda config: (config.image_size, config.image_size)
    """Height and width of the pictures or frames; None if the model sees none."""
    clip: Callable[[Any], Clip | None] = lambda config: None
    sound: Callable[[Any], Sound | None] = lambda config: None
    classes: Callable[[Any], int] = lambda config: 0
    """How many labels there are; 0 for tasks without labels."""
    names: Callable[[Any], Sequence[str]] = lambda config: ()
    """The labels, where the config tells which classes these are."""


def purpose_of(architecture: str) -> Purpose:
    return PURPOSES[architecture]


def _always(task: Task) -> Callable[[Any], Task]:
    return lambda config: task


def _classes(config: Any) -> int:
    return int(config.classes)


def _film(config: Any) -> Clip | None:
    return Clip(frames=config.frames, stride=SLOWFAST_STRIDES.get(config.frames, 4.0))


def _film_or_picture(config: Any) -> Clip | None:
    return None if config.pictures else _film(config)


def _slideshow(config: Any) -> Clip:
    """MAViL: two frames a second."""
    return Clip(frames=config.frames, stride=1, rate=2)


def _spectrogram(config: Any) -> Sound:
    return Sound(frames=config.audio_frames, mel_bins=config.mel_bins, mean=AUDIOSET.mean, std=AUDIOSET.std)


def _ava_names(config: Any) -> Sequence[str]:
    return tuple(ava.NAMES.values()) if config.actions == len(ava.NAMES) else ()


def _nothing(config: Any) -> None:
    return None


PYRAMID = Purpose(lambda config: "classify" if config.pictures else "actions", clip=_film_or_picture, classes=_classes)

PURPOSES: Mapping[str, Purpose] = {
    "vit": Purpose(lambda config: "classify" if config.classes else "embed", lambda config: config.image_shape, classes=_classes),
    "mae": Purpose(_always("autoencode")),
    "video_mae": Purpose(_always("actions"), clip=_film, classes=_classes),
    "video_mae_pretraining": Purpose(_always("autoencode"), clip=_film),
    "mavil": Purpose(_always("audio-visual"), clip=_slideshow, sound=_spectrogram, classes=_classes),
    "mavil_pretraining": Purpose(_always("autoencode"), clip=_slideshow, sound=_spectrogram),
    "audio_mae": Purpose(_always("autoencode"), _nothing, sound=_spectrogram),
    "maws_clip": Purpose(_always("zero-shot")),
    "flip": Purpose(_always("zero-shot")),
    "cit": Purpose(_always("zero-shot")),
    "diffmae": Purpose(_always("inpaint"), lambda config: config.image_size, lambda config: _film(config) if config.frames else None),
    "mcc": Purpose(_always("reconstruct")),
    "mvit": PYRAMID,
    "rev_mvit": PYRAMID,
    "lart": Purpose(_always("actions"), _nothing, classes=lambda config: int(config.actions), names=_ava_names),
    "hmr2": Purpose(_always("body")),
    "phalp_pose": Purpose(_always("track"), _nothing),
    "phalp_appearance": Purpose(_always("track"), lambda config: (config.size, config.size)),
}
"""Architecture → what its bundles are for."""
