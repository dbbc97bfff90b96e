"""How far looking at one window of a video has come: frames whose people are still to be found, and people still to be looked at."""

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
    """A frame and who was seen in it; its own pixels are gone."""

    time: float
    row: int
    rows: int
    seen: PersonObservations
    cut: bool
    """The video was cut just before it."""
    size: tuple[int, int]
    """Height and width of the video's frames."""
    shrunk: NDArray[np.uint8] | None = None
    """(h, w, 3), the frame as the network that describes people sees it; None: none does."""


@dataclass
class PendingFrame:
    """A frame whose people were found; `told` grows by a row for each crop that is looked at."""

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
        """(n, 3, S, S), the crops that were not looked at; None: there are none."""
        crops = self.found.crops
        return crops[len(self.told) :] if crops is not None and len(self.told) < len(crops) else None

    @property
    def values(self) -> NDArray[np.float32]:
        """Values that were told, (N, V); (N, 0) where nobody was looked at by themselves."""
        return np.stack(self.told) if self.told else np.zeros((len(self.found.boxes), 0), np.float32)


@dataclass
class WindowProgress:
    window: int
    frames: list[SampledFrame] = field(default_factory=list)
    """Taken from the video, and nobody has been looked for in them."""
    glances: list[PendingFrame] = field(default_factory=list)
    """By time; all of them still have crops that wait."""
    looks: list[FrameResult] = field(default_factory=list)
    """Done, by time."""
    all_taken: bool = False
    """The video has no more frames of this window."""

    @property
    def is_done(self) -> bool:
        return self.all_taken and not self.frames and not self.glances

    @property
    def looked(self) -> int:
        """Number of frames that are done."""
        return len(self.looks)

    @property
    def nbytes(self) -> int:
        kept = [frame.pixels.nbytes for frame in self.frames]
        kept += [glance.found.crops.nbytes for glance in self.glances if glance.found.crops is not None]
        shrunk = [*(glance.shrunk for glance in self.glances), *(look.shrunk for look in self.looks)]
        return sum(kept) + sum(pixels.nbytes for pixels in shrunk if pixels is not None)

    def crops(self) -> Iterator[tuple[PendingFrame, Tensor]]:
        """Crops that wait, (3, S, S), and whose frame they are of."""
        for glance in self.glances:
            if (waiting := glance.waiting) is not None:
                yield from ((glance, crop) for crop in waiting)
