"""Prediction of the locations of PHALP's tracks in the next frame (arXiv 2112.04477)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from models.people.cameras import FOCAL

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
