"""PHALP (arXiv 2112.04477): tracking of people by predicting appearance, location and pose in the next frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.systems.phalp.association_cost import EQ_019, Distance, Features, appearance_distances, costs
from models.systems.phalp.location_forecast import predict_location
from models.systems.phalp.texture_maps import update_texture

Floats = NDArray[np.float64]

LONGEST_GAP = 48
"""Frames; tracks that were lost longer are predicted as if for this long."""

PosePrediction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Times (N, K), poses (N, K, 229) and gaps (N,) → poses (N, 229): `predict_pose` of a model."""
TextureDistance = Callable[[Tensor, Tensor], Tensor]
"""Textures (K, 4, S, S) and (N, 4, S, S) → distances (K, N): `texture_distances` of a network."""


@dataclass(frozen=True)
class TrackerConfig:
    """The defaults are the published tracker's, but for the texture, which needs its appearance network."""

    predict_location: bool = True
    predict_pose: bool = True
    compare_texture: bool = False
    compare_appearance: bool = True
    """Compare appearance vectors if textures are not compared."""
    distance: Distance = EQ_019
    threshold: float = 100.0
    """Threshold of the cost: pairs above it never match."""
    history: int = 7
    """Detections that a track remembers."""
    longest_gap: int = 50
    """Frames without a detection after which a confirmed track ends."""
    confirmed_after: int = 5
    """Detections; a track that is missed before them ends at once."""
    texture_rate: float = 0.1
    match_identities: bool = False
    """Match by the given identities instead of by distance."""


@dataclass(frozen=True)
class Observation:
    """A person in a frame."""

    time: int
    appearance: Floats
    """(D,)."""
    pose: Floats
    """(229,), the depth divided by 200."""
    location: Floats
    """(99,): 45 points in units of the square frame, the last one where the camera projects to; the place before the camera three times."""
    confidence: float = 1.0
    texture: Tensor | None = None
    """(4, S, S), normalised."""
    annotated: bool = False
    """Confirms a track at once."""
    identity: int | None = None
    """Ground truth."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Further fields for the results."""


class State(IntEnum):
    TENTATIVE = 1
    CONFIRMED = 2
    ENDED = 3


@dataclass
class Track:
    number: int
    """From 1."""
    history: deque[Observation]
    predicted: Observation
    """The next frame's, as far as it was predicted, else the last one's."""
    state: State
    hits: int = 1
    age: int = 1
    missed: int = 0
    """Frames since the last detection."""

    @property
    def last(self) -> Observation:
        return self.history[-1]


@dataclass(frozen=True)
class Associated:
    numbers: tuple[int, ...]
    """The track of each detection."""
    costs: Floats | None
    """(tracks before this frame, detections), those above `threshold` cut to just above it; None if there were no pairs to compare."""


class Tracker:
    """Tracks people through one video, frame by frame."""

    def __init__(
        self, config: TrackerConfig, *, predict_pose: PosePrediction | None = None, texture_distance: TextureDistance | None = None
    ) -> None:
        if config.predict_pose and predict_pose is None:
            raise ValueError("predict_pose: a tracker that predicts poses needs a pose predictor")
        if config.compare_texture and texture_distance is None:
            raise ValueError("compare_texture: a tracker that compares textures needs an appearance network")
        self.config = config
        self.tracks: list[Track] = []
        """Alive, in the order of their numbers."""
        self._predict_pose = predict_pose
        self._texture_distance = texture_distance
        self._next = 1

    def update(self, detections: Sequence[Observation], *, shot: bool = False) -> Associated:
        """Take the detections of the next frame. shot: the video was cut before it."""
        for track in self.tracks:
            track.age += 1
            track.missed += 1
        pairs, matrix = self._match(detections, shot)
        matched = [self._continue(self.tracks[row], detections[column], shot) for row, column in pairs]
        self._predict(matched)
        continued = {row for row, _ in pairs}
        missed = [track for row, track in enumerate(self.tracks) if row not in continued]
        for track in missed:
            if track.state is State.TENTATIVE or track.missed > self.config.longest_gap:
                track.state = State.ENDED
        self._predict(missed)
        owners = {column: self.tracks[row].number for row, column in pairs}
        for column, detection in enumerate(detections):
            if column not in owners:
                owners[column] = self._start(detection)
        self.tracks = [track for track in self.tracks if track.state is not State.ENDED]
        return Associated(tuple(owners[column] for column in range(len(detections))), matrix)

    def _match(self, detections: Sequence[Observation], shot: bool) -> tuple[list[tuple[int, int]], Floats | None]:
        """Pairs of a row of `self.tracks` and a detection, by row; all tracks are equal, confirmed or not."""
        if not self.tracks or not detections:
            return [], None
        if self.config.match_identities:
            return self._match_identities(detections), None
        matrix = self._costs(detections, shot)
        from scipy.optimize import linear_sum_assignment  # no start needs it

        rows, columns = linear_sum_assignment(matrix)
        near = matrix[rows, columns] <= self.config.threshold
        return list(zip(rows[near].tolist(), columns[near].tolist(), strict=True)), matrix

    def _match_identities(self, detections: Sequence[Observation]) -> list[tuple[int, int]]:
        found = {detection.identity: column for column, detection in enumerate(detections) if detection.identity is not None}
        return [(row, found[track.last.identity]) for row, track in enumerate(self.tracks) if track.last.identity in found]

    def _costs(self, detections: Sequence[Observation], shot: bool) -> Floats:
        config = self.config
        expected = [track.predicted for track in self.tracks]
        tracks, seen = _features(expected), _features(detections)
        at_a_cut = shot and config.distance.shot_weights is not None  # then vectors decide
        if config.compare_texture and not at_a_cut:
            assert self._texture_distance is not None
            looks = self._texture_distance(_textures(expected), _textures(detections)).double().cpu().numpy()
        elif config.compare_appearance or at_a_cut:
            looks = appearance_distances(tracks.appearance, seen.appearance)
        else:
            looks = np.zeros((len(expected), len(detections)))
        matrix = costs(tracks, seen, config.distance, looks, shot=shot)
        return np.where(matrix > config.threshold, config.threshold + 1e-5, matrix)

    def _continue(self, track: Track, detection: Observation, shot: bool) -> Track:
        texture = track.last.texture
        if texture is not None and detection.texture is not None:
            merged = update_texture(texture, detection.texture, self.config.texture_rate, detection.confidence)
            detection = replace(detection, texture=merged)
        track.history.append(detection)
        if shot:
            track.history = deque([replace(seen, location=detection.location) for seen in track.history], track.history.maxlen)
        track.hits += 1
        track.missed = 0
        if track.state is State.TENTATIVE and track.hits >= self.config.confirmed_after:
            track.state = State.CONFIRMED
        return track

    def _start(self, detection: Observation) -> int:
        state = State.CONFIRMED if detection.annotated else State.TENTATIVE
        memory = deque([detection] * self.config.history, self.config.history)
        self.tracks.append(Track(self._next, memory, detection, state))
        self._next += 1
        return self._next - 1

    def _predict(self, tracks: Sequence[Track]) -> None:
        """Together, since the published pose predictor reads all of them at the first one's time."""
        if not tracks:
            return
        gaps = np.array([min(track.missed, LONGEST_GAP) for track in tracks])
        times = np.array([[seen.time for seen in track.history] for track in tracks], np.float64)  # (N, K)
        locations, poses = [track.last.location for track in tracks], [track.last.pose for track in tracks]
        if self.config.predict_location:
            history = np.array([[seen.location for seen in track.history] for track in tracks])  # (N, K, 99)
            locations = list(predict_location(times, history, gaps))
        if self.config.predict_pose:
            assert self._predict_pose is not None
            past = np.array([[seen.pose for seen in track.history] for track in tracks])  # (N, K, 229)
            predicted = self._predict_pose(torch.from_numpy(times), torch.from_numpy(past).float(), torch.from_numpy(gaps))
            poses = list(predicted.double().cpu().numpy())
        for track, location, pose in zip(tracks, locations, poses, strict=True):
            track.predicted = replace(track.last, location=location, pose=pose)


def _features(people: Sequence[Observation]) -> Features:
    return Features(
        np.stack([person.appearance for person in people]),
        np.stack([person.pose for person in people]),
        np.stack([person.location for person in people]),
    )


def _textures(people: Sequence[Observation]) -> Tensor:
    textures = [person.texture for person in people if person.texture is not None]
    if len(textures) < len(people):
        raise ValueError("texture: every detection needs one where textures are compared")
    return torch.stack(textures)
