"""How well a network names camera moves: on videos of pictures that were held out, looked at as the service does, and on a game's.

It is compared with what needs less: one of its frames, its frames in another order, and optical flow with a similarity fitted to it.
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

from models.arrays import UInt8Array
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

Scores = npt.NDArray[np.float64]


class ClipsQuality(StarterQuality, SplitQuality):
    """Accuracy of named camera moves on videos of held-out pictures and on a game's, as the service sees them; against optical flow."""

    kind: Literal["clips"] = "clips"
    videos: int = Field(default=300, gt=1)
    """Videos of held-out pictures, as many of each move."""
    seconds: float = Field(default=2.2, gt=0)
    short_side: int = Field(default=144, gt=0, multiple_of=2)
    """Pixels of the videos."""
    flow_clips: int = Field(default=1500, gt=0)
    """Clips of training that optical flow is fitted to."""
    game: PyPIPackage
    """ViZDoom, whose player turns and walks: of the test split alone."""
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
        """The default rung is chosen on the validation videos."""
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
class Looker:
    network: VideoMAE
    views: ViewCounts
    clip: Clip
    preprocess: Preprocess
    schedules: Mapping[str, MergeSchedule]
    flow: FlowForest

    def scores(self, frames: UInt8Array, rate: float) -> dict[str, Scores]:
        """Scores of a video (T, H, W, 3): (classes,) by each rung and by what the network is compared with."""
        seen = self._looked_at(frames, rate)  # (views, crops, T, S, S, 3)
        views = self._normalised(seen)
        told = {name: self._told(views, schedule) for name, schedule in self.schedules.items()}
        order = torch.randperm(self.clip.frames, generator=torch.Generator().manual_seed(0))
        middle = torch.full((self.clip.frames,), self.clip.frames // 2)
        told |= {name: self._told(views[:, :, which], self.schedules[OFF]) for name, which in ((ONE_FRAME, middle), (SHUFFLED, order))}
        return told | {FLOW: self.flow.scores(seen[:, seen.shape[1] // 2])}

    def _looked_at(self, frames: UInt8Array, rate: float) -> UInt8Array:
        asked = self.clip
        numbers = view_frames(len(frames), rate, frames=asked.frames, stride=asked.stride, views=self.views.count, rate=asked.rate)
        size = self.preprocess.image_size
        needed, places = torch.unique(numbers, return_inverse=True)
        clip = torch.from_numpy(frames[needed.numpy()]).permute(3, 0, 1, 2).float()
        squares = crops(clip, short_side=size, size=size, count=self.views.crops, smooth=asked.smooth)  # (crops, 3, N, S, S)
        views = squares[:, :, places].permute(2, 0, 3, 4, 5, 1)
        return np.asarray(views.round().clamp(0, 255).to(torch.uint8).numpy())

    def _normalised(self, seen: UInt8Array) -> Tensor:
        """→ (views · crops, 3, T, S, S)."""
        mean, std = torch.tensor(self.preprocess.mean), torch.tensor(self.preprocess.std)
        return ((torch.from_numpy(seen).flatten(0, 1).float() / 255 - mean) / std).permute(0, 4, 1, 2, 3)

    @torch.inference_mode()
    def _told(self, views: Tensor, schedule: MergeSchedule) -> Scores:
        logits = self.network(views, merge=schedule).logits
        return np.asarray(average_views(logits[None])[0].double().numpy())


def evaluate(settings: ClipsQuality, network: VideoMAE, trained_on: CameraClips, split: DataSplit, cache: Path) -> dict[str, Any]:
    """Raises TrainingError."""
    held_out = replace(trained_on, settings=trained_on.settings.model_copy(update={"part": split.value}))
    looker = Looker(
        network,
        architectures()["video_mae"].views({}),
        held_out.clip,
        held_out.preprocess,
        {OFF: MergeSchedule.off(), **(schedules(settings.ladder) if settings.ladder else {})},
        FlowForest(_clips(trained_on, settings.flow_clips), len(held_out.labels)),
    )
    videos = [held_out.video(index, settings.seconds, settings.short_side) for index in range(settings.videos)]
    told = _all(looker.scores(decode(video.content), video.rate) for video in videos)
    labels = np.array([video.label for video in videos])
    report = {
        "split": split.value,
        "videos": len(videos),
        **_compared(told, labels),
        "calibration_error": round(metrics.calibration_error(np.log(told[OFF] + 1e-9).astype(np.float32), labels), 5),
        "by_move": _by_move(told, labels, held_out.labels),
        "rungs": {name: _right(told[name], labels).to_json() for name in looker.schedules if name != OFF},
    }
    return report if split is DataSplit.VAL else report | {"game": _game(looker, settings, held_out.labels, cache)}


def _clips(source: CameraClips, count: int) -> Iterator[tuple[UInt8Array, int]]:
    """Clips of training (T, S, S, 3), as bytes."""
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (source.preprocess.mean, source.preprocess.std))
    for index in range(count):
        sample = source.sample(index, index)
        pixels = ((sample["clip"] * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        yield np.ascontiguousarray(pixels.permute(1, 2, 3, 0).numpy()), int(sample["label"])


def _all(told: Iterable[Mapping[str, Scores]]) -> dict[str, Scores]:
    """Name → (videos, classes)."""
    listed = list(told)
    return {name: np.stack([one[name] for one in listed]) for name in listed[0]}


def _right(scores: Scores, labels: npt.NDArray[np.int64]) -> metrics.MeanWithError:
    return metrics.accuracy(scores.argmax(axis=1) == labels)


def _compared(told: Mapping[str, Scores], labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    right = {name: told[name].argmax(axis=1) == labels for name in (OFF, ONE_FRAME, SHUFFLED, FLOW)}
    return {
        "network": metrics.accuracy(right[OFF]).to_json(),
        "baselines": {name: metrics.compare_with(right[OFF], right[name]) for name in (ONE_FRAME, SHUFFLED, FLOW)},
    }


def _by_move(told: Mapping[str, Scores], labels: npt.NDArray[np.int64], moves: Sequence[str]) -> list[dict[str, Any]]:
    """Rows by move: how many videos are right, and what else they are told as."""
    best, flow = told[OFF].argmax(axis=1), told[FLOW].argmax(axis=1)
    rows = []
    for number, move in enumerate(moves):
        asked = labels == number
        if not asked.any():
            continue
        others = np.bincount(best[asked & (best != labels)], minlength=len(moves))
        rows.append(
            {
                "name": move,
                "videos": int(asked.sum()),
                "right": int((best[asked] == number).sum()),
                "optical flow": int((flow[asked] == number).sum()),
                "told_as": {moves[other]: int(count) for other, count in enumerate(others) if count},
            }
        )
    return rows


def _game(looker: Looker, settings: ClipsQuality, moves: Sequence[str], cache: Path) -> dict[str, Any]:
    clips = list(vizdoom.played(settings.game, cache, settings.game_clips, settings.seconds))
    told = _all(looker.scores(clip.frames, vizdoom.RATE) for clip in clips)
    labels = np.array([moves.index(clip.action.move) for clip in clips])
    names = {action.move: action.name for action in vizdoom.ACTIONS}
    rows = [row | {"name": names[row["name"]], "move": row["name"]} for row in _by_move(told, labels, moves)]
    return {"clips": len(clips), **_compared(told, labels), "by_action": rows}
