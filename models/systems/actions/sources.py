"""Sources of the people of a job: a video, or tracks that came with the request, and the progress of its windows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.layers.stepwise import InvalidInput
from models.media.video import ClipInfo, ClipLimits, FrameNotReady, Frames, SampledFrame, VideoError, bytes_ahead, decoder_bytes
from models.systems.actions.person_tracks import TrackDetection
from models.systems.actions.pose_estimator import Detections, PersonObservations


@dataclass(frozen=True)
class FrameResult:
    """The people of a frame, without its pixels."""

    time: float
    row: int
    rows: int
    observations: PersonObservations
    cut: bool
    """Whether the video was cut just before it."""
    size: tuple[int, int]
    """Height and width of the video's frames."""
    shrunk: NDArray[np.uint8] | None = None
    """(h, w, 3), the frame at the input size of the appearance network; None without one."""


@dataclass
class PendingFrame:
    """A frame after detection; each crop that is read appends an array to `predictions`."""

    time: float
    row: int
    rows: int
    cut: bool
    detections: Detections
    shrunk: NDArray[np.uint8] | None = None
    predictions: list[NDArray[np.float32]] = field(default_factory=list)

    @classmethod
    def from_frame(cls, frame: SampledFrame, detections: Detections, shrunk: NDArray[np.uint8] | None) -> PendingFrame:
        return cls(frame.time, frame.row, frame.rows, frame.cut, detections, shrunk)

    @property
    def waiting(self) -> Tensor | None:
        """Crops that were not read yet, (n, 3, S, S); None if there are none."""
        crops = self.detections.crops
        return crops[len(self.predictions) :] if crops is not None and len(self.predictions) < len(crops) else None

    @property
    def values(self) -> NDArray[np.float32]:
        """Predicted values of the crops, (N, V); (N, 0) if no crop was read."""
        return np.stack(self.predictions) if self.predictions else np.zeros((len(self.detections.boxes), 0), np.float32)


@dataclass
class WindowProgress:
    window: int
    frames: list[SampledFrame] = field(default_factory=list)
    """Decoded frames before detection."""
    pending: list[PendingFrame] = field(default_factory=list)
    """Frames with crops to be read, by time."""
    results: list[FrameResult] = field(default_factory=list)
    all_taken: bool = False
    """Whether the video has no more frames of this window."""

    @property
    def is_done(self) -> bool:
        return self.all_taken and not self.frames and not self.pending

    @property
    def completed(self) -> int:
        return len(self.results)

    @property
    def nbytes(self) -> int:
        sizes = [frame.pixels.nbytes for frame in self.frames]
        sizes += [frame.detections.crops.nbytes for frame in self.pending if frame.detections.crops is not None]
        shrunk = [*(frame.shrunk for frame in self.pending), *(result.shrunk for result in self.results)]
        return sum(sizes) + sum(pixels.nbytes for pixels in shrunk if pixels is not None)

    def crops(self) -> Iterator[tuple[PendingFrame, Tensor]]:
        """Yield the crops to be read, (3, S, S), each with its frame."""
        for frame in self.pending:
            if (waiting := frame.waiting) is not None:
                yield from ((frame, crop) for crop in waiting)


ROW_EPS = 1e-6
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
        return self._decoded + (self._frames.decoded if self._frames is not None else 0)

    @property
    def seconds(self) -> float:
        return max(0.0, self._end - self._start)

    @property
    def windows(self) -> int:
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
