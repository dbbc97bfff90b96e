"""Frames of a video that several views look at: read in order, each prepared once, and those of the next view while one is looked at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.layers.steps import UnusableInput
from models.media.video import ClipLimits, NotYet, NumberedFrames, VideoError

AHEAD = 1
"""Views whose frames are read before they are asked for."""

Prepare = Callable[[NDArray[np.uint8]], Tensor]
"""Pixels (H, W, 3) of an upright frame → what the network is to see of it."""


class ViewFrames:
    """The prepared frames of each view, in their order. The frames of a view that was looked at before are read again from the begin."""

    def __init__(self, data: NDArray[np.uint8], numbers: Sequence[Sequence[int]], limits: ClipLimits, prepare: Prepare) -> None:
        """numbers: of the frames of each view, in the order in which the network sees them."""
        self._data, self._numbers, self._limits, self._prepare = data, numbers, limits, prepare
        self._reader: _Reader | None = self._read(0)

    def is_ready(self, view: int) -> bool:
        """Whether nothing has to be waited for."""
        return self._reader is not None and self._reader.is_ready(view)

    def take(self, view: int, until: float) -> list[Tensor]:
        """The frames of a view. The same view may be taken again.

        until: monotonic seconds until which they may be waited for. Raises NotYet, and UnusableInput for a video that cannot be read.
        """
        if self._reader is None or view < self._reader.view:
            self.close()
            self._reader = self._read(view)
        try:
            return self._reader.take(view, until)
        except VideoError as error:
            self.close()
            raise UnusableInput(str(error)) from error

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def _read(self, view: int) -> _Reader:
        wanted = sorted({number for numbers in self._numbers[view:] for number in numbers})
        return _Reader(NumberedFrames(self._data.data, wanted, self._limits), self._numbers, self._prepare, view)

    def __del__(self) -> None:
        if hasattr(self, "_reader"):  # its thread would read on
            self.close()


class GivenFrames:
    """Prepared frames that are there already: every view has the same."""

    def __init__(self, frames: list[Tensor]) -> None:
        self._frames = frames

    def is_ready(self, view: int) -> bool:
        return True

    def take(self, view: int, until: float) -> list[Tensor]:
        return self._frames

    def close(self) -> None:
        """Nothing is open."""


class _Reader:
    """A thread that reads the frames of all views from one on."""

    def __init__(self, frames: NumberedFrames, numbers: Sequence[Sequence[int]], prepare: Prepare, view: int) -> None:
        self.view = view
        """The one that was asked for last."""
        self._frames, self._numbers, self._prepare = frames, numbers, prepare
        self._last = {number: view for view in range(view, len(numbers)) for number in numbers[view]}
        self._ends = list(accumulate(map(max, numbers), max))
        """By view, the last frame that it or one before it sees."""
        self._ready: dict[int, Tensor] = {}
        """By number, those that a view still needs."""
        self._changed = threading.Condition()
        self._error: VideoError | None = None
        self._ended = self._closed = False
        self._thread = threading.Thread(target=self._read_all, name="views", daemon=True)
        self._thread.start()

    def is_ready(self, view: int) -> bool:
        with self._changed:
            return self._ended or self._has(self._numbers[view])

    def take(self, view: int, until: float) -> list[Tensor]:
        """Raises VideoError, and NotYet."""
        wanted = self._numbers[view]
        with self._changed:
            self.view = view
            self._ready = {number: frame for number, frame in self._ready.items() if self._last[number] >= view}
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended or self._has(wanted), max(0.0, until - time.monotonic()))
            if self._has(wanted):
                return [self._ready[number] for number in wanted]
            if not self._ended:
                raise NotYet
        raise self._error or VideoError("broken", f"it ended before frame {wanted[-1]}")

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._frames.close()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _has(self, numbers: Sequence[int]) -> bool:
        return all(number in self._ready for number in numbers)

    def _read_all(self) -> None:
        try:
            for frame in self._frames.take(1 + max(self._last)):
                shown = [number for number in range(frame.row, frame.end) if number in self._last]
                with self._changed:
                    self._changed.wait_for(lambda shown=shown: self._closed or self._is_due(shown[0]))  # type: ignore[misc]
                    if self._closed:
                        return
                prepared = self._prepare(frame.pixels)
                with self._changed:
                    self._ready |= dict.fromkeys((number for number in shown if self._last[number] >= self.view), prepared)
                    self._changed.notify_all()
        except VideoError as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _is_due(self, number: int) -> bool:
        """Views overlap, so what a later one sees first may lie before the end of this one."""
        return number <= self._ends[min(self.view + AHEAD, len(self._ends) - 1)]
