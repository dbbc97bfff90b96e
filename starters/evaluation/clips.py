"""Evaluation of camera moves on synthetic videos of held-out images, and on clips of a game, with the service's views.

Baselines: a single frame, shuffled frames, and a random forest on optical flow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

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
from starters.evaluation import vizdoom
from starters.evaluation.optical_flow import FlowForest
from starters.evaluation.starter_quality import StarterQuality
from training import phase_runner
from training.data.packages import PyPIPackage
from training.errors import RecipeError
from training.evaluation import metrics
from training.evaluation.ladder import ladder, schedules
from training.evaluation.report import Measurement
from training.evaluation.settings import DataSplit, LadderSettings
from training.evaluation.trained_classifier import Look, Report, SplitQuality, TrainedNetwork

OFF, ONE_FRAME, SHUFFLED, FLOW = "off", "one frame", "shuffled frames", "optical flow"


class ClipsQuality(StarterQuality, SplitQuality):
    """Accuracy on synthetic videos of held-out images and on clips of a game, against optical flow."""

    kind: Literal["clips"] = "clips"
    videos: int = Field(default=300, gt=1)
    """Number of synthetic videos, evenly over the moves."""
    seconds: float = Field(default=2.2, gt=0)
    short_side: int = Field(default=144, gt=0, multiple_of=2)
    """Short side of the videos in pixels."""
    flow_clips: int = Field(default=1500, gt=0)
    """Number of training clips that the optical-flow baseline is fitted to."""
    game: PyPIPackage
    """ViZDoom, whose clips belong to the test split."""
    game_clips: int = Field(default=120, gt=1)
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
            {"clips": report | {"validation": {name: chosen_by[name] for name in ("network", "baselines", "rungs")}}},
            rungs,
            default,
            data={
                "packages": [entry.package.model_dump() | {"license": entry.license} for entry in trained_on.settings.packages],
                "pictures": trained_on.stills.counts(),
            },
        )


@dataclass(frozen=True)
class VideoClassifier:
    """Network and baselines, applied to the service's views of a video."""

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
        order = torch.randperm(self.clip.frames, generator=torch.Generator().manual_seed(0))
        middle = torch.full((self.clip.frames,), self.clip.frames // 2)
        results |= {
            name: self._classify(views[:, :, indices], self.schedules[OFF]) for name, indices in ((ONE_FRAME, middle), (SHUFFLED, order))
        }
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
    report = {
        "split": split.value,
        "videos": len(videos),
        **_compare(scores, labels),
        "calibration_error": round(metrics.calibration_error(np.log(scores[OFF] + 1e-9).astype(np.float32), labels), 5),
        "by_move": _count_by_move(scores, labels, held_out.labels),
        "rungs": {name: _right(scores[name], labels).to_json() for name in classifier.schedules if name != OFF},
    }
    return report if split is DataSplit.VAL else report | {"game": _game(classifier, settings, held_out.labels, cache)}


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


def _right(scores: Float64Array, labels: npt.NDArray[np.int64]) -> metrics.MeanWithError:
    return metrics.accuracy(scores.argmax(axis=1) == labels)


def _compare(scores: Mapping[str, Float64Array], labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    right = {name: scores[name].argmax(axis=1) == labels for name in (OFF, ONE_FRAME, SHUFFLED, FLOW)}
    return {
        "network": metrics.accuracy(right[OFF]).to_json(),
        "baselines": {name: metrics.compare_with(right[OFF], right[name]) for name in (ONE_FRAME, SHUFFLED, FLOW)},
    }


def _count_by_move(scores: Mapping[str, Float64Array], labels: npt.NDArray[np.int64], moves: Sequence[str]) -> list[dict[str, Any]]:
    """Count correct videos and other predictions by move."""
    best, flow = scores[OFF].argmax(axis=1), scores[FLOW].argmax(axis=1)
    rows = []
    for number, move in enumerate(moves):
        chosen = labels == number
        if not chosen.any():
            continue
        others = np.bincount(best[chosen & (best != labels)], minlength=len(moves))
        rows.append(
            {
                "name": move,
                "videos": int(chosen.sum()),
                "right": int((best[chosen] == number).sum()),
                "optical flow": int((flow[chosen] == number).sum()),
                "told_as": {moves[other]: int(count) for other, count in enumerate(others) if count},
            }
        )
    return rows


def _game(classifier: VideoClassifier, settings: ClipsQuality, moves: Sequence[str], cache: Path) -> dict[str, Any]:
    clips = list(vizdoom.record_clips(settings.game, cache, settings.game_clips, settings.seconds))
    scores = _all(classifier.scores(clip.frames, vizdoom.RATE) for clip in clips)
    labels = np.array([moves.index(clip.action.move) for clip in clips])
    names = {action.move: action.name for action in vizdoom.ACTIONS}
    rows = [row | {"name": names[row["name"]], "move": row["name"]} for row in _count_by_move(scores, labels, moves)]
    return {"clips": len(clips), **_compare(scores, labels), "by_action": rows}
