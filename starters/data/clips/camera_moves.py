"""Clips of a camera that moves over images and through rooms, drawn for every sample; its move is the label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from pydantic import Field

from models.arrays import Float64Array, UInt8Array
from models.bundle_schema import Clip, Preprocess
from models.media.clip_sampling import frame_indices
from starters.data.clips import video_augmentation
from starters.data.clips.camera_paths import MOVES, draw_path
from starters.data.clips.render_scene import Viewport, draw_scene, render
from starters.data.clips.video_augmentation import draw_crop, draw_rate
from starters.data.images.package_images import Part, StillPackage, Stills, open_stills
from training.data.augment import normalise
from training.data.source import DataSettings, Sample, SamplePreparation
from training.errors import DataError

_LONG_SIDE = (1.0, 4 / 3, 16 / 9)
"""Ratios of the long to the short side of videos."""


class CameraMoves(DataSettings):
    kind: Literal["camera-moves"] = "camera-moves"
    packages: list[StillPackage] = Field(min_length=1)
    part: Part = "train"
    samples: int = Field(gt=0)
    """Samples of an epoch, the same number of each move."""
    rooms: float = Field(default=0.4, ge=0, le=1)
    """Share of scenes that are rooms."""
    coded: float = Field(default=0.5, ge=0, le=1)
    """Share of clips that are compressed by a codec."""

    def open(self, preparation: SamplePreparation) -> CameraClips:
        """Open the images that cameras move over. Raises DataError."""
        if preparation.clip is None or not isinstance(preparation.preprocess, Preprocess):
            raise DataError("clip, preprocess: the recipe does not say how clips are made (frames, stride; image_size, mean, std)")
        cv2.setNumThreads(1)  # its threads would compete with those that train
        stills = open_stills(self.packages, preparation.cache)
        for role in ("ground", "cutout"):
            stills.entries_of(self.part, role)
        return CameraClips(stills, self, preparation.clip, preparation.preprocess)


@dataclass(frozen=True)
class SyntheticVideo:
    """Encoded video to evaluate on."""

    content: bytes
    label: int
    rate: int


@dataclass(frozen=True)
class CameraClips:
    stills: Stills
    settings: CameraMoves
    clip: Clip
    preprocess: Preprocess
    unit: str = "clips"
    labels: tuple[str, ...] = MOVES

    def __len__(self) -> int:
        return self.settings.samples

    def identity(self) -> Mapping[str, Any]:
        return self.stills.identity()

    def sample(self, index: int, draw: int) -> Sample:
        generator, label = np.random.default_rng(draw), index % len(self.labels)
        duration = self.clip.frames * self.clip.stride / self.clip.rate
        rate = draw_rate(generator)
        first = float(generator.random())  # share of a frame before the clip starts
        span = (first, first + duration * rate - 1)
        times = (frame_indices(span, 10**6, self.clip.frames).numpy() / rate).clip(0, duration)
        frames = self._record(label, times, duration, draw_crop(self.preprocess.image_size, generator), generator)
        if generator.random() < self.settings.coded:
            frames = video_augmentation.compress(frames, generator)
        return {"clip": normalise(frames, self.preprocess), "label": torch.tensor(label)}

    def video(self, index: int, seconds: float, short_side: int) -> SyntheticVideo:
        """Make a video of the part, a function of its index alone."""
        generator, label = np.random.default_rng((_seed(self.settings.part), index)), index % len(self.labels)
        rate, long_side = draw_rate(generator), 2 * round(float(generator.choice(_LONG_SIDE)) * short_side / 2)
        width, height = (long_side, short_side) if generator.random() < 0.75 else (short_side, long_side)
        frame = Viewport(width, height, short_side / 2, (width / 2 - 0.5, height / 2 - 0.5))
        times = np.arange(round(seconds * rate)) / rate
        frames = self._record(label, times, seconds, frame, generator)
        codec = video_augmentation.CODECS[int(generator.integers(len(video_augmentation.CODECS)))]
        return SyntheticVideo(video_augmentation.encode(frames, rate, codec, quality=float(generator.random())), label, rate)

    def _record(self, label: int, times: Float64Array, duration: float, frame: Viewport, generator: np.random.Generator) -> UInt8Array:
        part = self.settings.part
        scene = draw_scene(self.stills, part, generator, rooms=self.settings.rooms, duration=duration)
        path = draw_path(self.labels[label], times, duration, scene.stage, generator)
        cutouts = self.stills.entries_of(part, "cutout")
        return video_augmentation.degrade(
            render(scene, path, times, frame), generator, self.stills.read(cutouts[int(generator.integers(len(cutouts)))])
        )


def _seed(part: Part) -> int:
    return {"train": 1, "val": 2, "test": 3}[part]
