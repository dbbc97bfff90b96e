"""Detector of cuts in a video: a frame differs from the one before both in its colours and in its pattern of light and dark.

Colours alone would miss cuts between two views of one dark stage, and light and dark alone would mistake a fast camera for a cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 8
LONG_SIDE = 160
"""Number of pixels to which the longer side of a frame is subsampled, up to twice as many."""
CELLS = (9, 16)
MAX_COLOUR_OVERLAP = 0.85
"""Share of pixels whose colours two frames have in common, below which a cut is possible."""
MAX_LIGHT_CORRELATION = 0.7
"""Correlation of light and dark, below which a cut is possible."""


@dataclass(frozen=True)
class _FrameFeatures:
    colours: NDArray[np.float64]
    """Shares of 512 colours."""
    light: NDArray[np.float64]
    """Brightness of each cell, minus the mean."""


class ShotBoundaryDetector:
    """Detector of the cuts of one video, frame by frame."""

    def __init__(self) -> None:
        self._last: _FrameFeatures | None = None

    def is_cut(self, frame: NDArray[np.uint8]) -> bool:
        """Return True if the video was cut just before this frame, RGB (H, W, 3). Fast motion, flashes and dissolves are not cuts."""
        last, self._last = self._last, _extract_features(frame)
        return last is not None and _differ(last, self._last)


def _differ(first: _FrameFeatures, second: _FrameFeatures) -> bool:
    common = float(np.minimum(first.colours, second.colours).sum())
    lengths = float(np.linalg.norm(first.light) * np.linalg.norm(second.light))
    alike = float((first.light * second.light).sum()) / lengths if lengths > 0 else 0.0
    return common < MAX_COLOUR_OVERLAP and alike < MAX_LIGHT_CORRELATION


def _extract_features(frame: NDArray[np.uint8]) -> _FrameFeatures:
    step = max(1, max(frame.shape) // LONG_SIDE)
    small = frame[::step, ::step]  # (h, w, 3)
    levels = small.reshape(-1, 3).astype(np.int64) * BINS // 256
    counts = np.bincount(levels @ np.array([BINS * BINS, BINS, 1]), minlength=BINS**3)
    edges = [np.linspace(0, side, cells, endpoint=False).astype(np.int64) for side, cells in zip(small.shape[:2], CELLS, strict=True)]
    sums = np.add.reduceat(np.add.reduceat(small.sum(axis=2, dtype=np.float64), edges[0], axis=0), edges[1], axis=1)
    sizes = np.outer(*(np.maximum(1, np.diff(np.append(edge, side))) for edge, side in zip(edges, small.shape[:2], strict=True)))
    light = sums / sizes
    return _FrameFeatures(counts / len(levels), light - light.mean())
