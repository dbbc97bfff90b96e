"""Moments of recordings, seen by several cameras: what a network of actions is asked about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.people.keypoints import TOKEN_VALUES, encode_tokens
from starters.data.people.motions import UNLABELLED, MotionTracks, Take, play
from training.data.source import SampleSource

Floats = NDArray[np.floating[Any]]
NEAR = 3
"""Rows around a moment within which the person must have been detected."""


@dataclass(frozen=True)
class Moments:
    """N tracks of T frames, and a frame of each whose action is asked for."""

    pose: Floats
    """(N, T, 55)."""
    detected: NDArray[np.bool_]
    """(N, T)."""
    rows: NDArray[np.int64]
    """(N,): the frame in question, in which the person was detected."""
    labels: NDArray[np.int64]
    """(N,)."""
    recordings: tuple[str, ...]
    """Where each is from."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def tokens(self) -> Floats:
        """(N, 55), of the frames in question."""
        return self.pose[np.arange(len(self)), self.rows]


def joined(*parts: Moments) -> Moments:
    return Moments(
        np.concatenate([part.pose for part in parts]),
        np.concatenate([part.detected for part in parts]),
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.labels for part in parts]),
        tuple(name for part in parts for name in part.recordings),
    )


def of_takes(takes: Sequence[Take], source: MotionTracks, *, every: float, cameras: int, seed: int) -> Moments:
    """Moments of recordings, `every` so many seconds, each from `cameras` views."""
    found = [moment for number, take in enumerate(takes) for moment in _of_take(take, number, source, every, cameras, seed)]
    return _gathered(found)


@dataclass(frozen=True)
class _Moment:
    pose: Floats
    detected: NDArray[np.bool_]
    row: int
    label: int
    recording: str


def _of_take(take: Take, number: int, source: MotionTracks, every: float, cameras: int, seed: int) -> Iterator[_Moment]:
    settings, length = source.settings, len(take.labels) / take.motion.rate
    for moment in np.arange(every / 2, max(length, 0.6 * every), every):
        at = min(int(moment * take.motion.rate), len(take.labels) - 1)
        if take.labels[at] == UNLABELLED:
            continue
        start = at / take.motion.rate - settings.frames // 2 / settings.rate
        if not take.motion.loops:
            start = max(0.0, start)
        scene = play(take, start, settings.frames, settings.rate, 1.0)
        row = min(round((at / take.motion.rate - start) * settings.rate), len(scene.joints) - 1)
        for camera in range(cameras):
            random = np.random.default_rng((seed, number, at, camera))
            poses, detected, (width, height) = source.detect(scene, random)
            near = [other for other in sorted(range(len(detected)), key=lambda other: abs(other - row)) if detected[other]][:1]
            if not near or abs(near[0] - row) > NEAR:
                continue  # as AVA does: who is not detected is not asked about
            pose, seen = np.zeros((settings.frames, TOKEN_VALUES)), np.zeros(settings.frames, np.bool_)
            pose[: len(detected)] = np.where(detected[:, None], encode_tokens(poses, width, height), 0)
            seen[: len(detected)] = detected
            yield _Moment(pose, seen, near[0], int(take.labels[at]), take.name)


def of_training(source: SampleSource, count: int, seed: int) -> Moments:
    """One moment of each of `count` tracks that training could have drawn."""
    found = []
    for index in range(count):
        sample = source.sample(index, seed + index)
        pose, actions = sample["pose"][:, 0].numpy(), sample["actions"][:, 0].numpy()
        detected = sample["detected"][:, 0, 0].numpy() > 0
        labelled = np.flatnonzero(detected & (sample["labelled"][:, 0, 0].numpy() > 0))
        if len(labelled):
            row = int(np.random.default_rng((seed, index)).choice(labelled))
            found.append(_Moment(pose, detected, row, int(actions[row].argmax()), ""))
    return _gathered(found)


def _gathered(found: Sequence[_Moment]) -> Moments:
    return Moments(
        np.stack([moment.pose for moment in found]).astype(np.float32),
        np.stack([moment.detected for moment in found]),
        np.array([moment.row for moment in found]),
        np.array([moment.label for moment in found]),
        tuple(moment.recording for moment in found),
    )
