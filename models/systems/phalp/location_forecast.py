"""Prediction of the locations of PHALP's tracks in the next frame (arXiv 2112.04477)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from models.people.cameras import FOCAL

FRAME = 256
"""Pixels of the tracker's square frame, in which its cameras are."""
POINT = slice(88, 90)
"""Indices in a location vector: x and y of the 45th point, where the camera projects to, in units of the frame's side."""
PLACE = slice(90, 93)
"""Indices of x, y and z in camera coordinates."""
SPREAD = slice(93, 96)
"""Indices of the uncertainty of each of them."""
RIDGE = {"depth": 5.0, "x": 1.2, "y": 2.0}
"""Penalties of the regressions of log depth and of the 45th point."""


@dataclass(frozen=True)
class Forecast:
    """Predictions of regressions over time, one for each track."""

    value: NDArray[np.float64]
    """(N,)."""
    interval: NDArray[np.float64]
    """(N,), half the width of the 95 % prediction interval; NaN where all times are equal."""


def forecast(times: NDArray[np.float64], values: NDArray[np.float64], at: NDArray[np.float64], penalty: float) -> Forecast:
    """Ridge regression of values (N, K) on times (N, K), its intercept not penalised, at the times `at` (N,)."""
    count = times.shape[1]
    middle, level = times.mean(axis=1, keepdims=True), values.mean(axis=1, keepdims=True)
    offset = times - middle
    spread = (offset**2).sum(axis=1)  # (N,)
    slope = (offset * (values - level)).sum(axis=1) / (spread + penalty)
    residuals = values - level - slope[:, None] * offset
    ahead = at - middle[:, 0]
    error = np.sqrt((residuals**2).sum(axis=1) / (count - 2))
    relative = np.divide(ahead**2, spread, out=np.full_like(spread, np.nan), where=spread > 0)
    interval = _quantile(count - 2) * error * np.sqrt(1 + 1 / count + relative)
    return Forecast(level[:, 0] + slope * ahead, interval)


@cache
def _quantile(freedom: int) -> float:
    """Student's t at 97.5 %. SciPy takes longer for it than the regressions of a frame do, and `scipy.stats` a second to import."""
    from scipy.special import stdtrit  # no start needs it

    return float(stdtrit(freedom, 0.975))


def predict_location(times: NDArray[np.float64], locations: NDArray[np.float64], gaps: NDArray[np.int64]) -> NDArray[np.float64]:
    """The location vectors (N, 99) that tracks will have in the next frame.

    times: (N, K) of their last detections; locations: (N, K, 99) of the same; gaps: (N,), frames since the last one, 0 right after it.
    """
    at = gaps + 1 + times[:, -1]
    x, y = locations[:, :, POINT].transpose(2, 0, 1)
    depth = forecast(times, np.log(locations[:, :, PLACE][:, :, 2]), at, RIDGE["depth"])
    across, down = forecast(times, x, at, RIDGE["x"]), forecast(times, y, at, RIDGE["y"])
    repeats = times.shape[1] - np.count_nonzero(np.diff(times, axis=1), axis=1)  # equal times in a row, and one
    z = np.exp(depth.value)
    predicted = locations[:, -1].copy()
    predicted[:, POINT] = np.stack([across.value, down.value], axis=1)
    predicted[:, PLACE] = np.stack([(across.value - 0.5) * z / FOCAL * FRAME, (down.value - 0.5) * z / FOCAL * FRAME, z], axis=1)
    predicted[:, SPREAD] = np.stack([across.interval, down.interval, np.exp(depth.interval)], axis=1) / repeats[:, None]
    predicted[:, 96:] = (1.0, 1.0, 0.0)
    return predicted
