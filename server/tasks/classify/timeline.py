"""The views of a clip, or the windows of a sound, one by one.

A worker answers `timeline` float32 (views, classes), `frames_at` float64 (views, frames) of the frames' times, and traces: `groups` int32
(views, depth, patches) with `grid` int32 (2 or 3,), and `groups_sight` and `grid_sight` of the half that sees, if another half hears.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from models.bundle import BundleSpec
from models.media import audio
from server.tasks.base import Outputs
from server.tasks.classify.images import Prediction, Trace, ViewScores, best_labels


class ClassifyPreview(msgspec.Struct, frozen=True):
    """The views or windows so far: `predictions` of their mean, and each view."""

    predictions: list[Prediction]
    timeline: list[ViewScores]


@dataclass(frozen=True)
class ViewSpans:
    """Time spans of views or windows."""

    hears: bool
    """Whether they are windows of sound, with or without frames."""
    start_s: float
    end_s: float
    """End of the part that is heard; infinite if it is not known yet."""

    def span_of(self, outputs: Outputs, view: int, spec: BundleSpec) -> tuple[float, float]:
        if not self.hears:
            seen = outputs["frames_at"][view]  # decreases if frames are further apart than a view is long
            return float(seen.min()), float(seen.max())
        assert spec.sound is not None
        seconds = audio.window_samples(spec.sound) / spec.sound.sample_rate
        start = self.start_s + view * seconds
        return start, min(start + seconds, self.end_s)


def timeline_of(outputs: Outputs, best: list[Prediction], top_k: int, spans: ViewSpans, spec: BundleSpec) -> list[ViewScores]:
    """Return one entry for each view. best: the best labels of the mean."""
    return [_view(outputs, view, scores, best, top_k, spans, spec) for view, scores in enumerate(outputs["timeline"])]


def timeline_bound(schedule: tuple[int, ...], views: int, traced: bool, spec: BundleSpec) -> int:
    """Return the maximum size in bytes of a timeline in an answer, and of one without traces in a preview.

    schedule: r of every block; views: views of a clip, or windows of a sound."""
    frames = 0 if spec.clip is None else spec.clip.frames
    patches = len(schedule) * (_clip_patches(spec) + _sound_patches(spec)) + 6
    return views * (2 * (4 * len(spec.labels) + 8 * frames) + (4 * patches if traced else 0))


def _view(
    outputs: Outputs, view: int, scores: NDArray[np.float32], best: list[Prediction], top_k: int, spans: ViewSpans, spec: BundleSpec
) -> ViewScores:
    view_best = best_labels(scores, top_k, spec)
    others = {one.index for one in best} - {one.index for one in view_best}
    both = view_best + [Prediction(spec.labels[index], index, float(scores[index])) for index in others]
    start_s, end_s = spans.span_of(outputs, view, spec)
    is_seen = "groups" in outputs and "frames_at" in outputs
    return ViewScores(
        round(start_s, 3),
        round(end_s, 3),
        sorted(both, key=lambda one: (-one.score, one.index)),
        frames_s=outputs["frames_at"][view].round(3).tolist() if is_seen else UNSET,
        trace=_trace(outputs, view, ""),
        trace_sight=_trace(outputs, view, "_sight"),
    )


def _trace(outputs: Outputs, view: int, half: str) -> Trace | UnsetType:
    if f"groups{half}" not in outputs:
        return UNSET
    return Trace(tuple(outputs[f"grid{half}"].tolist()), outputs[f"groups{half}"][view].tolist())


def _clip_patches(spec: BundleSpec) -> int:
    if spec.clip is None or spec.preprocess is None:
        return 0
    side = spec.preprocess.image_size // int(spec.config.get("patch_size", 16))
    return spec.clip.frames // int(spec.config.get("patch_frames", 2)) * side**2


def _sound_patches(spec: BundleSpec) -> int:
    return 0 if spec.sound is None else spec.sound.frames * spec.sound.mel_bins // int(spec.config.get("audio_patch_size", 16)) ** 2
