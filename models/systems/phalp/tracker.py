"""PHALP (arXiv 2112.04477): tracking of people by predicting appearance, location and pose in the next frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.arrays import Float64Array
from models.systems.phalp.association_cost import (
    EQ_019,
    CostModel,
    TrackFeatures,
    appearance_distances,
    association_costs,
    predict_location,
    update_texture,
)

MAX_GAP_FRAMES = 48
"""Maximum number of frames ahead: tracks lost for longer are predicted as if for this long."""

PredictPoseFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of times (N, K), poses (N, K, 229) and gaps (N,) → poses (N, 229): `predict_pose` of a model."""
TextureDistanceFn = Callable[[Tensor, Tensor], Tensor]
"""Function of textures (K, 4, S, S) and (N, 4, S, S) → distances (K, N): `texture_distances` of a network."""


@dataclass(frozen=True)
class TrackerConfig:
    """Config of the tracker. The defaults are the published ones except for textures, which need the appearance network."""

    predict_location: bool = True
    predict_pose: bool = True
    compare_texture: bool = False
    compare_appearance: bool = True
    """Compare appearance vectors if textures are not compared."""
    distance: CostModel = EQ_019
    threshold: float = 100.0
    """Maximum cost: pairs above it never match."""
    history: int = 7
    longest_gap: int = 50
    """Maximum number of frames without a detection before a confirmed track ends."""
    confirmed_after: int = 5
    """Number of detections that confirm a track; one that is missed earlier ends at once."""
    texture_rate: float = 0.1
    match_identities: bool = False
    """Match by the identities of observations instead of by distance."""


@dataclass(frozen=True)
class Observation:
    time: int
    appearance: Float64Array
    """(D,)."""
    pose: Float64Array
    """(229,), depth divided by 200."""
    location: Float64Array
    """(99,): 45 points in units of the square frame, the last one the projected camera position; then camera coordinates three times."""
    confidence: float = 1.0
    texture: Tensor | None = None
    """(4, S, S), normalised."""
    annotated: bool = False
    """Whether it confirms a track at once."""
    identity: int | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    """Further fields for the results."""


class TrackState(IntEnum):
    TENTATIVE = 1
    CONFIRMED = 2
    ENDED = 3


@dataclass
class Track:
    number: int
    history: deque[Observation]
    predicted: Observation
    """Prediction for the next frame, or the last observation for parts that are not predicted."""
    state: TrackState
    hits: int = 1
    age: int = 1
    missed: int = 0
    """Frames since the last detection."""

    @property
    def last(self) -> Observation:
        return self.history[-1]


@dataclass(frozen=True)
class Association:
    track_numbers: tuple[int, ...]
    """Number of each detection's track."""
    costs: Float64Array | None
    """(tracks before this frame, detections), those above `threshold` cut to just above it; None if there were no pairs to compare."""


class Tracker:
    def __init__(
        self, config: TrackerConfig, *, predict_pose: PredictPoseFn | None = None, texture_distance: TextureDistanceFn | None = None
    ) -> None:
        if config.predict_pose and predict_pose is None:
            raise ValueError("predict_pose: a tracker that predicts poses needs a pose predictor")
        if config.compare_texture and texture_distance is None:
            raise ValueError("compare_texture: a tracker that compares textures needs an appearance network")
        self.config = config
        self.tracks: list[Track] = []
        """Tracks that have not ended, in the order of their numbers."""
        self._predict_pose = predict_pose
        self._texture_distance = texture_distance
        self._next_number = 1

    def update(self, detections: Sequence[Observation], *, shot: bool = False) -> Association:
        """Process the detections of the next frame. shot: True if the video was cut before it."""
        for track in self.tracks:
            track.age += 1
            track.missed += 1
        pairs, matrix = self._match(detections, shot)
        matched = [self._extend_track(self.tracks[row], detections[column], shot) for row, column in pairs]
        self._predict(matched)
        continued = {row for row, _ in pairs}
        missed = [track for row, track in enumerate(self.tracks) if row not in continued]
        for track in missed:
            if track.state is TrackState.TENTATIVE or track.missed > self.config.longest_gap:
                track.state = TrackState.ENDED
        self._predict(missed)
        owners = {column: self.tracks[row].number for row, column in pairs}
        for column, detection in enumerate(detections):
            if column not in owners:
                owners[column] = self._start_track(detection)
        self.tracks = [track for track in self.tracks if track.state is not TrackState.ENDED]
        return Association(tuple(owners[column] for column in range(len(detections))), matrix)

    def _match(self, detections: Sequence[Observation], shot: bool) -> tuple[list[tuple[int, int]], Float64Array | None]:
        """Match rows of `self.tracks` with detections: pairs of indices, by row. Confirmed and tentative tracks are treated alike."""
        if not self.tracks or not detections:
            return [], None
        if self.config.match_identities:
            return self._match_identities(detections), None
        matrix = self._costs(detections, shot)
        from scipy.optimize import linear_sum_assignment  # not needed at startup

        rows, columns = linear_sum_assignment(matrix)
        near = matrix[rows, columns] <= self.config.threshold
        return list(zip(rows[near].tolist(), columns[near].tolist(), strict=True)), matrix

    def _match_identities(self, detections: Sequence[Observation]) -> list[tuple[int, int]]:
        columns = {detection.identity: column for column, detection in enumerate(detections) if detection.identity is not None}
        return [(row, columns[track.last.identity]) for row, track in enumerate(self.tracks) if track.last.identity in columns]

    def _costs(self, detections: Sequence[Observation], shot: bool) -> Float64Array:
        config = self.config
        expected = [track.predicted for track in self.tracks]
        tracks, observed = _features(expected), _features(detections)
        at_cut = shot and config.distance.shot_weights is not None  # then vectors decide
        if config.compare_texture and not at_cut:
            assert self._texture_distance is not None
            appearance = self._texture_distance(_textures(expected), _textures(detections)).double().cpu().numpy()
        elif config.compare_appearance or at_cut:
            appearance = appearance_distances(tracks.appearance, observed.appearance)
        else:
            appearance = np.zeros((len(expected), len(detections)))
        matrix = association_costs(tracks, observed, config.distance, appearance, shot=shot)
        return np.where(matrix > config.threshold, config.threshold + 1e-5, matrix)

    def _extend_track(self, track: Track, detection: Observation, shot: bool) -> Track:
        texture = track.last.texture
        if texture is not None and detection.texture is not None:
            merged = update_texture(texture, detection.texture, self.config.texture_rate, detection.confidence)
            detection = replace(detection, texture=merged)
        track.history.append(detection)
        if shot:
            track.history = deque(
                [replace(observation, location=detection.location) for observation in track.history], track.history.maxlen
            )
        track.hits += 1
        track.missed = 0
        if track.state is TrackState.TENTATIVE and track.hits >= self.config.confirmed_after:
            track.state = TrackState.CONFIRMED
        return track

    def _start_track(self, detection: Observation) -> int:
        state = TrackState.CONFIRMED if detection.annotated else TrackState.TENTATIVE
        history = deque([detection] * self.config.history, self.config.history)
        self.tracks.append(Track(self._next_number, history, detection, state))
        self._next_number += 1
        return self._next_number - 1

    def _predict(self, tracks: Sequence[Track]) -> None:
        """Predict all tracks in one call, since the published pose predictor reads all of them at the first one's time."""
        if not tracks:
            return
        gaps = np.array([min(track.missed, MAX_GAP_FRAMES) for track in tracks])
        times = np.array([[observation.time for observation in track.history] for track in tracks], np.float64)  # (N, K)
        locations, poses = [track.last.location for track in tracks], [track.last.pose for track in tracks]
        if self.config.predict_location:
            history = np.array([[observation.location for observation in track.history] for track in tracks])  # (N, K, 99)
            locations = list(predict_location(times, history, gaps))
        if self.config.predict_pose:
            assert self._predict_pose is not None
            past = np.array([[observation.pose for observation in track.history] for track in tracks])  # (N, K, 229)
            predicted = self._predict_pose(torch.from_numpy(times), torch.from_numpy(past).float(), torch.from_numpy(gaps))
            poses = list(predicted.double().cpu().numpy())
        for track, location, pose in zip(tracks, locations, poses, strict=True):
            track.predicted = replace(track.last, location=location, pose=pose)


def _features(people: Sequence[Observation]) -> TrackFeatures:
    return TrackFeatures(
        np.stack([person.appearance for person in people]),
        np.stack([person.pose for person in people]),
        np.stack([person.location for person in people]),
    )


def _textures(people: Sequence[Observation]) -> Tensor:
    textures = [person.texture for person in people if person.texture is not None]
    if len(textures) < len(people):
        raise ValueError("texture: every detection needs one where textures are compared")
    return torch.stack(textures)
