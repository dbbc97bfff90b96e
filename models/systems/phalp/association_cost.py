"""Cost of matching a detection with PHALP's prediction of a track (arXiv 2112.04477): a product over appearance, pose and location.

A texture is a person's visible skin, unwrapped: RGB, and a fourth channel that marks valid texels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.arrays import Float64Array
from models.systems.phalp.location_forecast import CAMERA_XYZ, POINT_XY, XYZ_SPREAD

BODY_VALUES = 226
"""Number of values of rotations and shape, without the location."""
APPEARANCE_SCALE = 1000.0


@dataclass(frozen=True)
class CostWeights:
    appearance: float
    pose: float
    location: float
    depth: float


@dataclass(frozen=True)
class CostModel:
    """Weights and thresholds of the cost, as published."""

    weights: CostWeights
    max_pose_distance: float
    """Upper bound of the squared distance of two poses."""
    shot_weights: CostWeights | None = None
    """Weights at a cut of the video, across which locations mean nothing; None: `weights`."""


EQ_019 = CostModel(CostWeights(4.0536, 1.3070, 0.3792, 4.1658), max_pose_distance=1.5)
EQ_010 = CostModel(
    CostWeights(3.8303, 1.5207, 0.4930, 4.5831), max_pose_distance=1.2, shot_weights=CostWeights(7.8303, 1.5207, 1e100, 1e100)
)


@dataclass(frozen=True)
class TrackFeatures:
    """Features of tracks, as predicted, or of detections."""

    appearance: Float64Array
    """(N, D)."""
    pose: Float64Array
    """(N, 229)."""
    location: Float64Array
    """(N, 99)."""


def association_costs(
    tracks: TrackFeatures, detections: TrackFeatures, model: CostModel, appearance: Float64Array, *, shot: bool = False
) -> Float64Array:
    """Return the costs (K, N) of matching K tracks with N detections, from 0. appearance: (K, N), distances of their appearance."""
    weights = model.shot_weights if shot and model.shot_weights else model.weights
    pose = np.minimum(squared_distances(tracks.pose[:, :BODY_VALUES], detections.pose[:, :BODY_VALUES]), model.max_pose_distance)
    location = np.sqrt(squared_distances(tracks.location[:, POINT_XY], detections.location[:, POINT_XY]))
    with np.errstate(all="ignore"):  # a track detected at one time only has no interval; NaN counts as near
        spread = tracks.location[:, XYZ_SPREAD]
        uncertainty = np.hypot(spread[:, 0], spread[:, 1])[:, None]
        depth = np.abs(np.log(tracks.location[:, CAMERA_XYZ][:, 2, None] / detections.location[:, CAMERA_XYZ][None, :, 2]))
        depth_uncertainty = np.abs(np.log(1 / spread[:, 2]))[:, None]
        product = (
            (1 + weights.appearance * appearance)
            * (1 + weights.pose * pose)
            * np.exp(location / (0.1 + np.tanh(uncertainty)) / weights.location)
            * np.exp(depth / (0.1 + np.tanh(depth_uncertainty)) / weights.depth)
        )
    return np.maximum(np.nan_to_num(product), 0.0)


def appearance_distances(tracks: Float64Array, detections: Float64Array) -> Float64Array:
    """Return squared distances (K, N) of appearance vectors (K, D) and (N, D)."""
    return squared_distances(tracks / APPEARANCE_SCALE, detections / APPEARANCE_SCALE)


def squared_distances(a: Float64Array, b: Float64Array) -> Float64Array:
    """Return squared Euclidean distances: (K, D), (N, D) → (K, N)."""
    distances: Float64Array = ((a[:, None] - b[None]) ** 2).sum(axis=2)
    return distances


COLOUR_SCALE = 5.0
"""Normalised colours are divided by this."""
TEXTURE_WEIGHT = 100.0


def normalise_texture(sampled: Tensor) -> Tensor:
    """Normalise textures (..., 4, S, S) sampled from a crop, RGB and a mask: colours where the mask becomes 1, zeros where it becomes
    -1."""
    colours, valid = sampled[..., :3, :, :], sampled[..., 3:, :, :] != 0
    return _join_mask(colours / COLOUR_SCALE, valid)


def update_texture(old: Tensor, new: Tensor, rate: float, confidence: float) -> Tensor:
    """Blend a track's texture with a detection's, (4, S, S) each: by rate · confidence² where both are valid, else the valid one."""
    fraction = rate * confidence**2
    valid_before, valid_now = old[3:] > 0, new[3:] > 0
    blended = (1 - fraction) * old[:3] + fraction * new[:3]
    colours = torch.where(valid_before & valid_now, blended, torch.where(valid_now, new[:3], old[:3]))
    return _join_mask(colours, valid_before | valid_now)


def texture_distances(encode: Callable[[Tensor], Tensor], tracks: Tensor, detections: Tensor) -> Tensor:
    """Return distances (K, N) of textures (K, 4, S, S) and (N, 4, S, S), by a network's codes of the texels that are valid in both.

    encode: textures (M, 4, S, S) → (M, D). Each pair has its own mask: computed track by track, so that memory does not grow with the
    pairs.
    """
    return torch.stack([_texture_distances(encode, track, detections) for track in tracks])


def _texture_distances(encode: Callable[[Tensor], Tensor], track: Tensor, detections: Tensor) -> Tensor:
    """Return distances (N,) of a texture (4, S, S) from textures (N, 4, S, S)."""
    common = (track[3:] > 0.5) & (detections[:, 3:] > 0.5)  # (N, 1, S, S)
    track_code, detection_codes = (encode(textures * common) / APPEARANCE_SCALE for textures in (track, detections))  # (N, D)
    return TEXTURE_WEIGHT * (track_code - detection_codes).square().sum(dim=1)


def _join_mask(colours: Tensor, valid: Tensor) -> Tensor:
    return torch.cat([torch.where(valid, colours, 0.0), torch.where(valid, 1.0, -1.0).to(colours.dtype)], dim=-3)
