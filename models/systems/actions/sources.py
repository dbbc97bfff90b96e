"""Sources of the people of a job: a video, or tracks that came with the request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.layers.stepwise import InvalidInput
from models.media.video import ClipInfo, ClipLimits, FrameNotReady, Frames, SampledFrame, VideoError, bytes_ahead, decoder_bytes
from models.systems.actions.person_tracks import TrackDetection
from models.systems.actions.window_progress import WindowProgress

ROW_EPS = 1e-6
"""Tolerance in rows for rounding errors."""
SLACK_S = 1.0
"""Seconds added to the end of a video: decoders may report later times than the packets."""


class VideoSource:
    """Frames of a video by window, in order. A request for an earlier window decodes the video again from its start, so the frames depend
    on the window's number only. The progress of the latest window is kept, since a step may be retried."""

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
        """Keep the video, unopened. step: rows of a window. start, end: seconds, `end` exclusive. long_side: of scaled frames in pixels."""
        self._data = data
        self._info = info
        self._rate, self._step, self._limits = rate, step, limits
        self._start, self._end = start, min(end, info.duration_s)
        self._decode_until = end if end < info.duration_s else info.duration_s + SLACK_S
        self._first_row = math.ceil(start * rate - ROW_EPS)
        self._long_side = long_side
        self._frames: Frames | None = None
        self._next = 0
        """Number of the window that the next frame belongs to."""
        self._progress = WindowProgress(window=-1)
        self._decoded = 0
        """Number of frames decoded by earlier runs of the decoder."""

    @property
    def decoded(self) -> int:
        """Number of frames decoded so far."""
        return self._decoded + (self._frames.decoded if self._frames is not None else 0)

    @property
    def seconds(self) -> float:
        """Seconds of video to process."""
        return max(0.0, self._end - self._start)

    @property
    def windows(self) -> int:
        """Number of windows."""
        return max(1, math.ceil((math.ceil(self._end * self._rate - ROW_EPS) - self._first_row) / self._step))

    @property
    def nbytes(self) -> int:
        """Memory in bytes, including that of the process that decodes the video."""
        decoder = decoder_bytes(self._info.width, self._info.height)
        return self._data.nbytes + decoder + bytes_ahead(self._info.width, self._info.height, self._long_side) + self._progress.nbytes

    def rows(self, window: int) -> tuple[int, int]:
        """Return the first row of a window and the row after its last."""
        first = self._first_row + window * self._step
        return first, first + self._step

    def frames_at(self, window: int) -> int:
        """Estimate the number of frames in a window."""
        first, end = self.rows(window)
        rows = min(end, math.ceil(self._end * self._rate)) - first
        return max(1, round(rows * min(1.0, self._info.fps / self._rate)))

    def progress(self, window: int) -> WindowProgress:
        """Return the progress of a window: that of the latest window is kept, any other starts empty."""
        if self._progress.window != window:
            self._progress = WindowProgress(window)
        return self._progress

    def take(self, window: int, max_frames: int, until: float | None = None) -> tuple[list[SampledFrame], bool]:
        """Return the next frames of a window, by time, and whether these are its last. Raises UnusableInput.

        until: monotonic seconds, when to return the frames decoded so far; None: wait for `max_frames` or the window's last."""
        try:
            return self._take(window, max_frames, until)
        except VideoError as error:
            self.close()
            self._progress = WindowProgress(window=-1)
            raise InvalidInput(str(error)) from error

    def close(self) -> None:
        if self._frames is not None:
            self._decoded += self._frames.decoded
            self._frames.close()
        self._frames = None

    def _take(self, window: int, max_frames: int, until: float | None) -> tuple[list[SampledFrame], bool]:
        if self._frames is None or window < self._next:
            self.close()
            self._next = 0
            span = {"start": self._start, "end": self._decode_until}
            self._frames = Frames(self._data.data, self._rate, self._limits, **span, long_side=self._long_side)
        frames: list[SampledFrame] = []
        with suppress(FrameNotReady):
            while self._next < window:
                for _ in self._frames.take(self.rows(self._next)[1], until):
                    pass
                self._next += 1
            for frame in self._frames.take(self.rows(window)[1], until):
                frames.append(frame)
                if len(frames) == max_frames:
                    return frames, False
            self._next = window + 1
        return frames, self._next > window


@dataclass(frozen=True)
class TrackSource:
    """Detections that came with the request, by row."""

    found: Sequence[TrackDetection]
    step: int
    first_row: int = 0

    decoded = 0
    seconds = 0.0

    @cached_property
    def windows(self) -> int:
        last = max((one.end for one in self.found), default=1)
        return max(1, -(-(last - self.first_row) // self.step))

    @cached_property
    def nbytes(self) -> int:
        return sum(one.token.nbytes + one.box.nbytes + one.pose.nbytes for one in self.found)

    @cached_property
    def _window_detections(self) -> Mapping[int, list[TrackDetection]]:
        windows: dict[int, list[TrackDetection]] = {}
        for one in self.found:
            windows.setdefault((one.row - self.first_row) // self.step, []).append(one)
        return windows

    def rows(self, window: int) -> tuple[int, int]:
        first = self.first_row + window * self.step
        return first, first + self.step

    def sightings(self, window: int) -> list[TrackDetection]:
        return self._window_detections.get(window, [])

    def close(self) -> None:
        """Do nothing: no file or process is open."""
