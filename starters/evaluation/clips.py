"""Evaluation of camera moves on synthetic videos of held-out images, with the service's views, compared with optical flow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from models.arrays import Float64Array, UInt8Array
from models.bundle_schema import Clip, Preprocess
from models.media.clip_sampling import average_views, crops, view_frames
from models.merge_schedule import MergeSchedule
from models.registry import ViewCounts, architectures
from models.systems.mae_st.model import VideoMAE
from starters.data.clips.camera_moves import CameraClips
from starters.data.clips.video_augmentation import decode
from starters.evaluation.starter_quality import StarterQuality
from training import phase_runner
from training.errors import RecipeError
from training.evaluation import metrics
from training.evaluation.ladder import ladder, schedules
from training.evaluation.report import Measurement
from training.evaluation.settings import DataSplit, LadderSettings
from training.evaluation.trained_classifier import Look, Report, SplitQuality, TrainedNetwork

OFF, FLOW = "off", "optical flow"


class ClipsQuality(StarterQuality, SplitQuality):
    """Accuracy on synthetic videos of held-out images, against optical flow."""

    kind: Literal["clips"] = "clips"
    videos: int = Field(default=300, gt=1)
    """Number of synthetic videos, evenly over the moves."""
    seconds: float = Field(default=2.2, gt=0)
    short_side: int = Field(default=144, gt=0, multiple_of=2)
    """Short side of the videos in pixels."""
    flow_clips: int = Field(default=1500, gt=0)
    """Number of training clips that the optical-flow baseline is fitted to."""
    ladder: LadderSettings | None = None

    def planned_rungs(self) -> list[dict[str, Any]]:
        return self.ladder.to_json() if self.ladder else []

    def prepare(self, trained: TrainedNetwork) -> Look:
        trained_on, network = phase_runner.source_of(trained.recipe, trained.recipe.released_phase, trained.cache), trained.network
        if not isinstance(trained_on, CameraClips) or not isinstance(network, VideoMAE):
            raise RecipeError("release.quality: kind clips is for a video_mae on data of kind camera-moves")
        return lambda split: evaluate(self, network, trained_on, split, trained.cache)

    def measurement(self, trained: TrainedNetwork, report: Report) -> Measurement:
        """Return the measurement; the default rung is chosen on the validation videos."""
        trained_on = phase_runner.source_of(trained.recipe, trained.recipe.released_phase, trained.cache)
        assert isinstance(trained_on, CameraClips) and isinstance(trained.network, VideoMAE)
        chosen_by = self.report(trained, DataSplit.VAL)
        accuracy, by = ({name: row["value"] for name, row in split["rungs"].items()} for split in (report, chosen_by))
        rungs, default = ladder(self.ladder, trained.network, accuracy, by) if self.ladder else ([], None)
        return Measurement(
            {"clips": report | {"validation": {name: chosen_by[name] for name in ("network", "rungs")}}},
            rungs,
            default,
            data={
                "packages": [entry.package.model_dump() | {"license": entry.license} for entry in trained_on.settings.packages],
                "pictures": trained_on.stills.counts(),
            },
        )


@dataclass(frozen=True)
class VideoClassifier:
    """Network and baseline, applied to the service's views of a video."""

    network: VideoMAE
    views: ViewCounts
    clip: Clip
    preprocess: Preprocess
    schedules: Mapping[str, MergeSchedule]
    flow: FlowForest

    def scores(self, frames: UInt8Array, rate: float) -> dict[str, Float64Array]:
        """Return scores (classes,) of a video (T, H, W, 3), by rung and baseline."""
        seen = self._sample_views(frames, rate)  # (views, crops, T, S, S, 3)
        views = self._normalise(seen)
        results = {name: self._classify(views, schedule) for name, schedule in self.schedules.items()}
        return results | {FLOW: self.flow.scores(seen[:, seen.shape[1] // 2])}

    def _sample_views(self, frames: UInt8Array, rate: float) -> UInt8Array:
        sampling = self.clip
        numbers = view_frames(len(frames), rate, frames=sampling.frames, stride=sampling.stride, views=self.views.count, rate=sampling.rate)
        size = self.preprocess.image_size
        needed, places = torch.unique(numbers, return_inverse=True)
        clip = torch.from_numpy(frames[needed.numpy()]).permute(3, 0, 1, 2).float()
        squares = crops(clip, short_side=size, size=size, count=self.views.crops, smooth=sampling.smooth)  # (crops, 3, N, S, S)
        views = squares[:, :, places].permute(2, 0, 3, 4, 5, 1)
        return np.asarray(views.round().clamp(0, 255).to(torch.uint8).numpy())

    def _normalise(self, seen: UInt8Array) -> Tensor:
        """Normalise views: (views, crops, T, S, S, 3) → (views · crops, 3, T, S, S)."""
        mean, std = torch.tensor(self.preprocess.mean), torch.tensor(self.preprocess.std)
        return ((torch.from_numpy(seen).flatten(0, 1).float() / 255 - mean) / std).permute(0, 4, 1, 2, 3)

    @torch.inference_mode()
    def _classify(self, views: Tensor, schedule: MergeSchedule) -> Float64Array:
        logits = self.network(views, merge=schedule).logits
        return np.asarray(average_views(logits[None])[0].double().numpy())


def evaluate(settings: ClipsQuality, network: VideoMAE, trained_on: CameraClips, split: DataSplit, cache: Path) -> dict[str, Any]:
    """Evaluate a split. Raises TrainingError."""
    held_out = replace(trained_on, settings=trained_on.settings.model_copy(update={"part": split.value}))
    classifier = VideoClassifier(
        network,
        architectures()["video_mae"].views({}),
        held_out.clip,
        held_out.preprocess,
        {OFF: MergeSchedule.off(), **(schedules(settings.ladder) if settings.ladder else {})},
        FlowForest(_clips(trained_on, settings.flow_clips), len(held_out.labels)),
    )
    videos = [held_out.video(index, settings.seconds, settings.short_side) for index in range(settings.videos)]
    scores = _all(classifier.scores(decode(video.content), video.rate) for video in videos)
    labels = np.array([video.label for video in videos])
    right = {name: scores[name].argmax(axis=1) == labels for name in scores}
    return {
        "split": split.value,
        "videos": len(videos),
        "network": metrics.accuracy(right[OFF]).to_json(),
        "baselines": {FLOW: metrics.compare_with(right[OFF], right[FLOW])},
        "rungs": {name: metrics.accuracy(right[name]).to_json() for name in classifier.schedules if name != OFF},
    }


def _clips(source: CameraClips, count: int) -> Iterator[tuple[UInt8Array, int]]:
    """Yield training clips, uint8 (T, S, S, 3), with their labels."""
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (source.preprocess.mean, source.preprocess.std))
    for index in range(count):
        sample = source.sample(index, index)
        pixels = ((sample["clip"] * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        yield np.ascontiguousarray(pixels.permute(1, 2, 3, 0).numpy()), int(sample["label"])


def _all(scores: Iterable[Mapping[str, Float64Array]]) -> dict[str, Float64Array]:
    """Stack the scores of all videos by name: (videos, classes)."""
    rows = list(scores)
    return {name: np.stack([one[name] for one in rows]) for name in rows[0]}


_EVERY = 4
"""Spacing in pixels of the points whose flow is fitted."""
_TREES = 300


class FlowForest:
    """Random forest fitted to clips (T, S, S, 3) with labels."""

    def __init__(self, clips: Iterable[tuple[UInt8Array, int]], classes: int) -> None:
        from sklearn.ensemble import RandomForestClassifier  # takes seconds to import

        features, labels = zip(*((features_of(clip), label) for clip, label in clips), strict=True)
        self._forest = RandomForestClassifier(_TREES, random_state=0).fit(np.stack(features), np.array(labels))
        self._classes = classes

    def scores(self, clips: Iterable[UInt8Array]) -> Float64Array:
        """Return the scores of a video, the mean over its clips: (classes,)."""
        mean = self._forest.predict_proba(np.stack([features_of(clip) for clip in clips])).mean(axis=0)
        scores = np.zeros(self._classes)
        scores[self._forest.classes_] = mean
        return scores


def features_of(clip: UInt8Array) -> Float64Array:
    """Return mean, standard deviation and mean absolute value of displacement in half sides, log scale and radians per frame."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    steps = np.array([_similarity(before, after) for before, after in pairwise(grey)])  # (T - 1, 4)
    return np.concatenate([steps.mean(axis=0), steps.std(axis=0), np.abs(steps).mean(axis=0)])


def _similarity(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> tuple[float, float, float, float]:
    height, width = before.shape
    no_flow = np.zeros((height, width, 2), np.float32)
    flow = cv2.calcOpticalFlowFarneback(before, after, no_flow, 0.5, 3, 13, 3, 5, 1.1, 0)[::_EVERY, ::_EVERY].reshape(-1, 2)
    rows, columns = np.mgrid[:height:_EVERY, :width:_EVERY]
    points = np.stack([columns.ravel() - width / 2, rows.ravel() - height / 2], axis=1).astype(np.float32)
    found = cv2.estimateAffinePartial2D(points, points + flow, method=cv2.RANSAC, ransacReprojThreshold=0.7)[0]
    if found is None:
        return 0.0, 0.0, 0.0, 0.0
    half, (cos, sin) = min(height, width) / 2, (found[0, 0], found[1, 0])
    return found[0, 2] / half, found[1, 2] / half, math.log(max(math.hypot(cos, sin), 1e-3)), math.atan2(sin, cos)
