"""Progress of one window of a video: frames before detection, frames with crops to be read, and completed frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.media.video import SampledFrame
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
    """Completed frames, by time."""
    all_taken: bool = False
    """Whether the video has no more frames of this window."""

    @property
    def is_done(self) -> bool:
        return self.all_taken and not self.frames and not self.pending

    @property
    def completed(self) -> int:
        """Number of completed frames."""
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
