"""Prediction of the locations of PHALP's tracks (arXiv 2112.04477), and the cost of matching a detection with a predicted track:
a product over appearance, pose and location.

A texture is a person's visible skin, unwrapped: RGB, and a fourth channel that marks valid texels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.arrays import Float64Array
from models.people.crops import FOCAL

FRAME_SIDE = 256
"""Side in pixels of the tracker's square frame, to which its cameras refer."""
POINT_XY = slice(88, 90)
"""Indices in a location vector: x and y of the 45th point, the projected camera position, in units of the frame's side."""
CAMERA_XYZ = slice(90, 93)
"""Indices of x, y and z in camera coordinates."""
XYZ_SPREAD = slice(93, 96)
"""Indices of the uncertainties of x, y and z."""
RIDGE_PENALTIES = {"depth": 5.0, "x": 1.2, "y": 2.0}
"""Penalties of the regressions of log depth and of the 45th point."""


@dataclass(frozen=True)
class Forecast:
    """Values that regressions over time predict, one per track."""

    value: NDArray[np.float64]
    """(N,)."""
    interval: NDArray[np.float64]
    """(N,), half the width of the 95 % prediction interval; NaN if all times are equal."""


def forecast(times: NDArray[np.float64], values: NDArray[np.float64], at_times: NDArray[np.float64], penalty: float) -> Forecast:
    """Fit ridge regressions of values (N, K) on times (N, K), intercepts not penalised, and evaluate them at `at_times` (N,)."""
    count = times.shape[1]
    mean_time, mean_value = times.mean(axis=1, keepdims=True), values.mean(axis=1, keepdims=True)
    offset = times - mean_time
    spread = (offset**2).sum(axis=1)  # (N,)
    slope = (offset * (values - mean_value)).sum(axis=1) / (spread + penalty)
    residuals = values - mean_value - slope[:, None] * offset
    ahead = at_times - mean_time[:, 0]
    error = np.sqrt((residuals**2).sum(axis=1) / (count - 2))
    relative = np.divide(ahead**2, spread, out=np.full_like(spread, np.nan), where=spread > 0)
    interval = _student_quantile(count - 2) * error * np.sqrt(1 + 1 / count + relative)
    return Forecast(mean_value[:, 0] + slope * ahead, interval)


@cache
def _student_quantile(degrees_of_freedom: int) -> float:
    """Return Student's t at 97.5 %. Cached, since SciPy takes longer for it than for a frame's regressions; `scipy.stats` takes a second to
    import."""
    from scipy.special import stdtrit  # not needed at startup

    return float(stdtrit(degrees_of_freedom, 0.975))


def predict_location(times: NDArray[np.float64], locations: NDArray[np.float64], gaps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Predict the location vectors (N, 99) of tracks in the next frame.

    times: (N, K) of their last detections; locations: (N, K, 99) of the same; gaps: (N,), frames since the last one, 0 right after it.
    """
    at_times = gaps + 1 + times[:, -1]
    x, y = locations[:, :, POINT_XY].transpose(2, 0, 1)
    depth = forecast(times, np.log(locations[:, :, CAMERA_XYZ][:, :, 2]), at_times, RIDGE_PENALTIES["depth"])
    across, down = forecast(times, x, at_times, RIDGE_PENALTIES["x"]), forecast(times, y, at_times, RIDGE_PENALTIES["y"])
    repeats = times.shape[1] - np.count_nonzero(np.diff(times, axis=1), axis=1)  # one more than the number of equal times in a row
    z = np.exp(depth.value)
    predicted = locations[:, -1].copy()
    predicted[:, POINT_XY] = np.stack([across.value, down.value], axis=1)
    predicted[:, CAMERA_XYZ] = np.stack(
        [(across.value - 0.5) * z / FOCAL * FRAME_SIDE, (down.value - 0.5) * z / FOCAL * FRAME_SIDE, z], axis=1
    )
    predicted[:, XYZ_SPREAD] = np.stack([across.interval, down.interval, np.exp(depth.interval)], axis=1) / repeats[:, None]
    predicted[:, 96:] = (1.0, 1.0, 0.0)
    return predicted


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
