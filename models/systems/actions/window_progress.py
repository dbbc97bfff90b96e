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
    seen: PersonObservations
    cut: bool
    """Whether the video was cut just before it."""
    size: tuple[int, int]
    """Height and width of the video's frames."""
    shrunk: NDArray[np.uint8] | None = None
    """(h, w, 3), the frame at the input size of the appearance network; None without one."""


@dataclass
class PendingFrame:
    """A frame after detection; each crop that is read appends an array to `told`."""

    time: float
    row: int
    rows: int
    cut: bool
    found: Detections
    shrunk: NDArray[np.uint8] | None = None
    told: list[NDArray[np.float32]] = field(default_factory=list)

    @classmethod
    def of(cls, frame: SampledFrame, found: Detections, shrunk: NDArray[np.uint8] | None) -> PendingFrame:
        return cls(frame.time, frame.row, frame.rows, frame.cut, found, shrunk)

    @property
    def waiting(self) -> Tensor | None:
        """Crops that were not read yet, (n, 3, S, S); None if there are none."""
        crops = self.found.crops
        return crops[len(self.told) :] if crops is not None and len(self.told) < len(crops) else None

    @property
    def values(self) -> NDArray[np.float32]:
        """Predicted values of the crops, (N, V); (N, 0) if no crop was read."""
        return np.stack(self.told) if self.told else np.zeros((len(self.found.boxes), 0), np.float32)


@dataclass
class WindowProgress:
    window: int
    frames: list[SampledFrame] = field(default_factory=list)
    """Decoded frames before detection."""
    glances: list[PendingFrame] = field(default_factory=list)
    """Frames with crops to be read, by time."""
    looks: list[FrameResult] = field(default_factory=list)
    """Completed frames, by time."""
    all_taken: bool = False
    """Whether the video has no more frames of this window."""

    @property
    def is_done(self) -> bool:
        return self.all_taken and not self.frames and not self.glances

    @property
    def looked(self) -> int:
        """Number of completed frames."""
        return len(self.looks)

    @property
    def nbytes(self) -> int:
        kept = [frame.pixels.nbytes for frame in self.frames]
        kept += [glance.found.crops.nbytes for glance in self.glances if glance.found.crops is not None]
        shrunk = [*(glance.shrunk for glance in self.glances), *(look.shrunk for look in self.looks)]
        return sum(kept) + sum(pixels.nbytes for pixels in shrunk if pixels is not None)

    def crops(self) -> Iterator[tuple[PendingFrame, Tensor]]:
        """Yield the crops to be read, (3, S, S), each with its frame."""
        for glance in self.glances:
            if (waiting := glance.waiting) is not None:
                yield from ((glance, crop) for crop in waiting)
