"""Moments of recordings from several cameras, on which action recognition is evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.arrays import FloatArray
from models.people.keypoints import TOKEN_VALUES, encode_tokens
from starters.data.people.motions import UNLABELLED, MotionTracks, Take, play
from training.data.source import SampleSource

NEAR = 3
"""Maximum number of rows from a moment to the nearest detection of the person."""


@dataclass(frozen=True)
class Views:
    """Cameras and moments of an evaluation. The seed decides where cameras are."""

    every: float
    """Interval of moments in seconds."""
    cameras: int
    seed: int


@dataclass(frozen=True)
class Moments:
    """N tracks of T frames, each with a frame whose action is to be recognised."""

    pose: FloatArray
    """(N, T, 55)."""
    detected: NDArray[np.bool_]
    """(N, T)."""
    rows: NDArray[np.int64]
    """Frame of each track, in which the person is detected, (N,)."""
    labels: NDArray[np.int64]
    """(N,)."""
    recordings: tuple[str, ...]
    """Recording of each track."""

    def __len__(self) -> int:
        return len(self.labels)


def moments_of_takes(takes: Sequence[Take], source: MotionTracks, views: Views) -> Moments:
    """Render moments of recordings from virtual cameras."""
    found = [moment for number, take in enumerate(takes) for moment in _moments_of_take(take, number, source, views)]
    return _stack(found)


@dataclass(frozen=True)
class _Moment:
    pose: FloatArray
    detected: NDArray[np.bool_]
    row: int
    label: int
    recording: str


def _moments_of_take(take: Take, number: int, source: MotionTracks, views: Views) -> Iterator[_Moment]:
    settings, length = source.settings, len(take.labels) / take.motion.rate
    for moment in np.arange(views.every / 2, max(length, 0.6 * views.every), views.every):
        at = min(int(moment * take.motion.rate), len(take.labels) - 1)
        if take.labels[at] == UNLABELLED:
            continue
        start = at / take.motion.rate - settings.frames // 2 / settings.rate
        if not take.motion.loops:
            start = max(0.0, start)
        scene = play(take, start, settings.frames, settings.rate, 1.0)
        row = min(round((at / take.motion.rate - start) * settings.rate), len(scene.joints) - 1)
        for camera in range(views.cameras):
            random = np.random.default_rng((views.seed, number, at, camera))
            poses, detected, (width, height) = source.detect(scene, random)
            near = [other for other in sorted(range(len(detected)), key=lambda other: abs(other - row)) if detected[other]][:1]
            if not near or abs(near[0] - row) > NEAR:
                continue  # as in AVA, moments without a detection are left out
            pose, seen = np.zeros((settings.frames, TOKEN_VALUES)), np.zeros(settings.frames, np.bool_)
            pose[: len(detected)] = np.where(detected[:, None], encode_tokens(poses, width, height), 0)
            seen[: len(detected)] = detected
            yield _Moment(pose, seen, near[0], int(take.labels[at]), take.name)


def draw_training_moments(source: SampleSource, count: int, seed: int) -> Moments:
    """Draw one moment of each of `count` tracks that are made as in training."""
    found = []
    for index in range(count):
        sample = source.sample(index, seed + index)
        pose, actions = sample["pose"][:, 0].numpy(), sample["actions"][:, 0].numpy()
        detected = sample["detected"][:, 0, 0].numpy() > 0
        labelled = np.flatnonzero(detected & (sample["labelled"][:, 0, 0].numpy() > 0))
        if len(labelled):
            row = int(np.random.default_rng((seed, index)).choice(labelled))
            found.append(_Moment(pose, detected, row, int(actions[row].argmax()), ""))
    return _stack(found)


def _stack(found: Sequence[_Moment]) -> Moments:
    return Moments(
        np.stack([moment.pose for moment in found]).astype(np.float32),
        np.stack([moment.detected for moment in found]),
        np.array([moment.row for moment in found]),
        np.array([moment.label for moment in found]),
        tuple(moment.recording for moment in found),
    )
