"""Cuts of a video: frames whose colours have little in common with those of the frame before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 8
"""Of each colour."""
COARSE = 4
"""Only every so many pixels across and down are looked at."""
COMMON = 0.5
"""Share of pixels whose colours two frames of one shot have in common, at least."""


def is_cut(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> bool:
    """Whether a video was cut between two frames that follow each other, RGB (H, W, 3). Moving people and cameras are no cuts."""
    return float(np.minimum(_colours(before), _colours(after)).sum()) < COMMON


def _colours(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Shares of 512 colours."""
    levels = frame[::COARSE, ::COARSE].reshape(-1, 3).astype(np.int64) * BINS // 256  # (N, 3)
    counts = np.bincount(levels @ np.array([BINS * BINS, BINS, 1]), minlength=BINS**3)
    return counts / len(levels)
