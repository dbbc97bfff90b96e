"""Video files → one random clip each, and its sound where a network hears too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.bundle_schema import Clip, Preprocess
from models.media.clip_sampling import frame_indices, random_box, random_span, resize_box
from training.data.audio_files import load_spectrogram
from training.data.augment import normalise
from training.data.decode import VIDEOS, read_frames, video_length
from training.data.labelled_files import LabelledFiles, find
from training.data.source import DataSettings, Sample, SamplePreparation
from training.errors import DataError


class VideoFilesSettings(DataSettings):
    kind: Literal["videos"] = "videos"
    path: Path
    """A folder of video files: one subfolder for each class, or `labels.jsonl`."""
    labelled: bool = True
    sound: bool = False
    """Also give the spectrogram of the sound that goes with the clip."""
    repeat: int = Field(default=1, gt=0)
    """Clips of each video in an epoch, each with a start and a crop of its own (repeated augmentation of MAE-ST)."""

    def open(self, preparation: SamplePreparation) -> Videos:
        if preparation.clip is None or not isinstance(preparation.preprocess, Preprocess):
            raise DataError("clip, preprocess: the recipe does not say how clips are made (frames, stride; image_size, mean, std)")
        if self.sound:
            preparation.require_sound()
        return Videos(find(self.path, VIDEOS, labelled=self.labelled), self, preparation.clip, preparation)


@dataclass(frozen=True)
class Videos:
    found: LabelledFiles
    settings: VideoFilesSettings
    clip: Clip
    preparation: SamplePreparation
    unit: str = "clips"

    @property
    def labels(self) -> tuple[str, ...]:
        return self.found.labels

    def __len__(self) -> int:
        return len(self.found.files) * self.settings.repeat

    def identity(self) -> Mapping[str, Any]:
        return self.found.identity()

    def sample(self, index: int, draw: int) -> Sample:
        place = index % len(self.found.files)
        file, clip = self.found.files[place], self.clip
        generator = torch.Generator().manual_seed(draw)
        total, fps = video_length(file)
        start = float(torch.rand((), generator=generator))
        span = random_span(total, fps, frames=clip.frames, stride=int(clip.stride), draw=start, rate=clip.rate)
        images = read_frames(file, frame_indices(span, total, clip.frames).tolist(), fps)  # (T, H, W, 3)
        sample = {"clip": self._crop(images, generator), **self.found.target(place)}
        if self.settings.sound:
            sample["spectrogram"] = load_spectrogram(file, self.preparation.require_sound(), span[0] / fps)
        return sample

    def _crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (T, H, W, 3) → normalised (3, T, S, S): the same random box and flip for all frames."""
        preprocess, augment = self.preparation.require_preprocess(), self.preparation.augment
        clip = normalise(images.numpy(), preprocess)  # (3, T, H, W)
        box = random_box(clip.shape[2], clip.shape[3], generator, area=augment.crop_scale or (1.0, 1.0))
        clip = resize_box(clip, box, preprocess.image_size)
        mirrored = augment.flip and float(torch.rand((), generator=generator)) < 0.5
        return clip.flip(-1) if mirrored else clip
