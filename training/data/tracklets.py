"""Tracks of people with actions, as LART is trained on: files of its format, those of one clip in one folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.media.safe_joblib import UnsafeFile
from models.people.ava import CLASS_NAMES, EVALUATED_CLASSES
from models.people.tracklets import build_clip, read_tracklet, shuffle
from training.data.image_text import digest
from training.data.source import DataSettings, Sample, SamplePreparation, UnreadableSample
from training.errors import DataError


class TrackletsSettings(DataSettings):
    kind: Literal["tracklets"] = "tracklets"
    path: Path
    """A folder of `CLIP/TRACK.pkl`, one folder for each clip."""
    mean_std: Path
    """`mean_std.npy`, float (2, 1, K): statistics of the poses."""
    frames: int = Field(default=125, gt=1)
    people: int = Field(default=5, gt=0)
    """People of a clip, the one that it is about included."""
    appearance: int | None = None
    """Values of an appearance feature; None: the network has none, and gets none."""

    def open(self, preparation: SamplePreparation) -> TrackletSource:
        files = tuple(sorted(self.path.glob("*/*.pkl")))
        if not files:
            raise DataError(f"data.path: {self.path} has no files CLIP/TRACK.pkl")
        try:
            mean_std = torch.from_numpy(np.load(self.mean_std, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise DataError(f"data.mean_std: {self.mean_std} cannot be read ({error})") from error
        return TrackletSource(files, self, mean_std)


@dataclass(frozen=True)
class TrackletSource:
    files: tuple[Path, ...]
    settings: TrackletsSettings
    mean_std: Tensor
    labels: tuple[str, ...] = tuple(CLASS_NAMES.values())
    unit: str = "tracks"

    def __len__(self) -> int:
        return len(self.files)

    def identity(self) -> Mapping[str, Any]:
        rows = (f"{file.parent.name}/{file.name} {file.stat().st_size}" for file in self.files)
        return {"tracks": len(self.files), "listing": digest(rows)}

    def sample(self, index: int, draw: int) -> Sample:
        file, settings = self.files[index], self.settings
        others = [other for other in sorted(file.parent.glob("*.pkl")) if other != file]
        try:
            ego = read_tracklet(file)
            neighbours = shuffle([read_tracklet(other) for other in others], draw) if settings.people > 1 else []
            clip = build_clip(
                ego,
                neighbours,
                frames=settings.frames,
                people=settings.people,
                mean_std=self.mean_std,
                classes=EVALUATED_CLASSES,
                appearance=settings.appearance,
                training=True,
            )
        except (UnsafeFile, OSError, ValueError) as error:
            raise UnreadableSample(f"{file}: {error}") from error
        tracks, targets = clip.tracks, clip.targets
        assert tracks.joints is not None and tracks.appearance is not None
        sample = {
            "pose": tracks.pose[0],  # (T, P, 229)
            "joints": tracks.joints[0],
            "detected": targets.detected,
            "labelled": targets.labelled,
            "actions": targets.actions[..., : len(EVALUATED_CLASSES)],
            "raw_pose": targets.pose,
        }
        return sample | ({"appearance": tracks.appearance[0]} if settings.appearance else {})
