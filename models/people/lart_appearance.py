"""What of a video LART's appearance features are computed from: short clips around the middle of every few frames of a track.

No recorded case covers it; it follows the description of the published demo, which assumes 30 frames a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUP = 6
"""Frames that share one feature, 5 a second."""
ASPECT = 1.2
"""Wider frames are cropped to this; those that are narrower than 0.8 lose height."""


@dataclass(frozen=True)
class Group:
    rows: range
    """Of the track: those that get the feature."""
    middle: int
    """The row whose box counts."""
    clip: NDArray[np.int64]
    """Rows that the video network sees, at the track's ends the last ones again and again."""


def groups(length: int, clip_span: int) -> list[Group]:
    """Of a track of `length` frames. clip_span: frames times sampling rate of the video network; clips have one frame more."""
    starts = range(0, length, GROUP)
    rows = [range(start, min(start + GROUP, length)) for start in starts]
    middles = [(group.start + group.stop) // 2 for group in rows]
    around = np.arange(clip_span + 1) - clip_span // 2
    return [Group(group, middle, np.clip(middle + around, 0, length - 1)) for group, middle in zip(rows, middles, strict=True)]


@dataclass(frozen=True)
class Window:
    """A part of a frame."""

    left: int
    top: int
    width: int
    height: int

    def shifted(self, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        """A box x1, y1, x2, y2 of the frame in the window's pixels."""
        x1, y1, x2, y2 = box
        return x1 - self.left, y1 - self.top, x2 - self.left, y2 - self.top


def central_window(width: int, height: int) -> Window:
    """What is left of a frame once its aspect is between 0.8 and 1.2: the same is cut off both sides."""
    if width / height > ASPECT:
        cut = int((width - ASPECT * height) // 2)
        return Window(cut, 0, width - 2 * cut, height)
    if width / height < 0.8:
        cut = int((height - width / 0.8) // 2)
        return Window(0, cut, width, height - 2 * cut)
    return Window(0, 0, width, height)
