"""Where the people of a job come from: a video, whose frames a pipeline looks at, or tracks that were found before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from models.actions.looking import Looking
from models.actions.tracks import Sighting
from models.layers.steps import UnusableInput
from models.media.video import ClipInfo, ClipLimits, Frame, Frames, VideoError, bytes_ahead

ROUNDING = 1e-6
"""Of a row: less than one is none."""


class VideoSource:
    """Frames of a video by window, in order; who asks for frames that have gone by has the video decoded again from its begin. So all that
    is told is a function of the window's number. What was seen in the latest window is kept, since a step may be taken again."""

    def __init__(
        self,
        data: NDArray[np.uint8],
        info: ClipInfo,
        rate: float,
        step: int,
        limits: ClipLimits,
        *,
        start: float,
        end: float,
        long_side: int | None,
    ) -> None:
        """step: rows of a window. start, end: seconds; a frame at `end` is not wanted. long_side: what frames are shrunk to."""
        self._data = data
        self._info = info
        self._rate, self._step, self._limits = rate, step, limits
        self._start, self._end = start, min(end, info.duration_s)
        self._asked_end = end if end < info.duration_s else None
        self._first_row = math.ceil(start * rate - ROUNDING)
        self._long_side = long_side
        self._frames: Frames | None = None
        self._next = 0
        """Window that the next frame belongs to."""
        self._looking = Looking(window=-1)
        self._decoded = 0
        """Frames of runs of the decoder that have ended."""

    @property
    def decoded(self) -> int:
        """Frames that were decoded so far."""
        return self._decoded + (self._frames.decoded if self._frames is not None else 0)

    @property
    def seconds(self) -> float:
        """Of video that are looked at."""
        return max(0.0, self._end - self._start)

    @property
    def windows(self) -> int:
        """Number of windows."""
        return max(1, math.ceil((math.ceil(self._end * self._rate - ROUNDING) - self._first_row) / self._step))

    @property
    def nbytes(self) -> int:
        return self._data.nbytes + bytes_ahead(self._info.width, self._info.height, self._long_side) + self._looking.nbytes

    def rows(self, window: int) -> tuple[int, int]:
        """First and end of a window."""
        first = self._first_row + window * self._step
        return first, first + self._step

    def frames_at(self, window: int) -> int:
        """Number of frames in a window, about."""
        first, end = self.rows(window)
        rows = min(end, math.ceil(self._end * self._rate)) - first
        return max(1, round(rows * min(1.0, self._info.fps / self._rate)))

    def looking(self, window: int) -> Looking:
        """How far looking at a window has come: at nothing of it, unless it was the latest."""
        if self._looking.window != window:
            self._looking = Looking(window)
        return self._looking

    def take(self, window: int, most: int) -> list[Frame]:
        """The next frames of a window, by time; fewer than `most` if these are its last. Raises UnusableInput."""
        try:
            return self._taken(window, most)
        except VideoError as error:
            self.close()
            self._looking = Looking(window=-1)
            raise UnusableInput(str(error)) from error

    def close(self) -> None:
        if self._frames is not None:
            self._decoded += self._frames.decoded
            self._frames.close()
        self._frames = None

    def _taken(self, window: int, most: int) -> list[Frame]:
        if self._frames is None or window < self._next:
            self.close()
            self._next = 0
            wanted = {"start": self._start, "end": self._asked_end}
            self._frames = Frames(self._data.data, self._rate, self._limits, **wanted, long_side=self._long_side)
        while self._next < window:
            for _ in self._frames.take(self.rows(self._next)[1]):
                pass
            self._next += 1
        frames = list(islice(self._frames.take(self.rows(window)[1]), most))
        if len(frames) < most:
            self._next = window + 1
        return frames


@dataclass(frozen=True)
class TrackSource:
    """Sightings that came with the request, by row."""

    found: Sequence[Sighting]
    step: int
    first_row: int = 0

    decoded = 0
    seconds = 0.0

    @property
    def windows(self) -> int:
        last = max((one.end for one in self.found), default=1)
        return max(1, -(-(last - self.first_row) // self.step))

    @property
    def nbytes(self) -> int:
        return sum(one.token.nbytes + one.box.nbytes + one.pose.nbytes for one in self.found)

    def rows(self, window: int) -> tuple[int, int]:
        first = self.first_row + window * self.step
        return first, first + self.step

    def sightings(self, number: int) -> list[Sighting]:
        first, end = self.rows(number)
        return [one for one in self.found if first <= one.row < end]

    def close(self) -> None:
        """Holds nothing open."""


Source = VideoSource | TrackSource
