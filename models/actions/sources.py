"""Where the people of a job come from: a video, whose frames a pipeline looks at, or tracks that were found before."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.actions.tracks import Sighting
from models.layers.steps import UnusableInput
from models.media.video import ClipInfo, ClipLimits, Frame, Frames, VideoError

KEPT = 2
"""Windows of frames that are kept: the latest, since a step may be taken again, and the one before."""


class VideoSource:
    """Frames of a video by window. Reading is a function of the window's number: what was read last is kept, and who asks for an earlier
    window has the video decoded again from its begin."""

    def __init__(
        self, data: NDArray[np.uint8], info: ClipInfo, rate: float, step: int, limits: ClipLimits, start: float, end: float
    ) -> None:
        self.data = data
        self.info = info
        self._rate, self._step, self._limits = rate, step, limits
        self._start, self._end = start, min(end, info.duration_s)
        self.first_row = int(np.ceil(start * rate))
        """Of the grid."""
        self._lock = threading.Lock()
        self._frames: Frames | None = None
        self._next = 0
        self._windows: dict[int, list[Frame]] = {}

    @property
    def windows(self) -> int:
        rows = max(1.0, (self._end - self._start) * self._rate)
        return max(1, int(np.ceil(rows / self._step)))

    @property
    def nbytes(self) -> int:
        windows = list(self._windows.values())
        return int(self.data.nbytes + sum(frame.pixels.nbytes for frames in windows for frame in frames))

    def rows(self, window: int) -> tuple[int, int]:
        """First and end of a window. The last one holds whatever follows."""
        first = self.first_row + window * self._step
        return first, first + self._step

    def sightings(self, number: int) -> list[Sighting]:
        return []

    def frames(self, number: int) -> list[Frame]:
        """Of a window, by time. Raises UnusableInput."""
        with self._lock:
            if number not in self._windows:
                self._read(number)
            return self._windows[number]

    def close(self) -> None:
        with self._lock:
            if self._frames is not None:
                self._frames.close()
            self._frames, self._windows = None, {}

    def _read(self, number: int) -> None:
        if self._frames is None or number < self._next:
            if self._frames is not None:
                self._frames.close()
            self._next = 0
            data = memoryview(np.ascontiguousarray(self.data))
            self._frames = self._opened(data)
        while self._next <= number:
            _, end = self.rows(self._next)
            self._windows = {kept: frames for kept, frames in self._windows.items() if kept > self._next - KEPT}
            self._windows[self._next] = self._taken(self._frames, end)
            self._next += 1

    def _opened(self, data: memoryview) -> Frames:
        try:
            return Frames(data, self._rate, self._limits, start=self._start, end=self._end + 1 / self._rate)
        except VideoError as error:
            raise UnusableInput(str(error)) from error

    def _taken(self, frames: Frames, end: int) -> list[Frame]:
        try:
            return frames.take(end)
        except VideoError as error:
            self._frames = None
            raise UnusableInput(str(error)) from error


@dataclass(frozen=True)
class TrackSource:
    """Sightings that came with the request, by row."""

    found: Sequence[Sighting]
    step: int
    first_row: int = 0

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

    def frames(self, number: int) -> list[Frame]:
        return []

    def close(self) -> None:
        """Holds nothing open."""


Source = VideoSource | TrackSource
