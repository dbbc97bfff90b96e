"""Distance of a detection from PHALP's prediction of a track (arXiv 2112.04477): a product over appearance, pose and location."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.systems.phalp.location_forecast import PLACE, POINT, SPREAD

Floats = NDArray[np.float64]
POSE_VALUES = 226
"""Rotations and shape, without the place."""
APPEARANCE_UNIT = 1000.0


@dataclass(frozen=True)
class Weights:
    appearance: float
    pose: float
    place: float
    depth: float


@dataclass(frozen=True)
class Distance:
    """The published fits."""

    weights: Weights
    largest_pose: float
    """Upper bound of the squared distance of two poses."""
    shot_weights: Weights | None = None
    """Weights at a cut of the video, where locations mean nothing; None: the same."""


EQ_019 = Distance(Weights(4.0536, 1.3070, 0.3792, 4.1658), largest_pose=1.5)
EQ_010 = Distance(Weights(3.8303, 1.5207, 0.4930, 4.5831), largest_pose=1.2, shot_weights=Weights(7.8303, 1.5207, 1e100, 1e100))


@dataclass(frozen=True)
class Features:
    """Features of tracks, as predicted, or of detections."""

    appearance: Floats
    """(N, D)."""
    pose: Floats
    """(N, 229)."""
    location: Floats
    """(N, 99)."""


def costs(tracks: Features, detections: Features, distance: Distance, appearance: Floats, *, shot: bool = False) -> Floats:
    """(K, N), from 0. appearance: (K, N), distances of what tracks and detections look like."""
    weights = distance.shot_weights if shot and distance.shot_weights else distance.weights
    pose = np.minimum(squared_distances(tracks.pose[:, :POSE_VALUES], detections.pose[:, :POSE_VALUES]), distance.largest_pose)
    place = np.sqrt(squared_distances(tracks.location[:, POINT], detections.location[:, POINT]))
    with np.errstate(all="ignore"):  # a track seen at one time only has no interval; what comes of it counts as near
        spread = tracks.location[:, SPREAD]
        uncertain = np.hypot(spread[:, 0], spread[:, 1])[:, None]
        depth = np.abs(np.log(tracks.location[:, PLACE][:, 2, None] / detections.location[:, PLACE][None, :, 2]))
        uncertain_depth = np.abs(np.log(1 / spread[:, 2]))[:, None]
        product = (
            (1 + weights.appearance * appearance)
            * (1 + weights.pose * pose)
            * np.exp(place / (0.1 + np.tanh(uncertain)) / weights.place)
            * np.exp(depth / (0.1 + np.tanh(uncertain_depth)) / weights.depth)
        )
    return np.maximum(np.nan_to_num(product), 0.0)


def appearance_distances(tracks: Floats, detections: Floats) -> Floats:
    """(K, D), (N, D) → (K, N)."""
    return squared_distances(tracks / APPEARANCE_UNIT, detections / APPEARANCE_UNIT)


def squared_distances(a: Floats, b: Floats) -> Floats:
    """(K, D), (N, D) → (K, N)."""
    distances: Floats = ((a[:, None] - b[None]) ** 2).sum(axis=2)
    return distances
