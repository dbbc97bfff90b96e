"""Frames of a video that several views look at: read in order, each prepared once, and those of the next view while one is looked at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.layers.stepwise import InvalidInput
from models.media.video import ClipLimits, FrameNotReady, NumberedFrames, VideoError
from models.processes.confined_process import was_killed

AHEAD = 1
"""Views whose frames are read before they are asked for."""
MOST_BYTES = 256 * 2**20
"""Prepared frames that are kept, at most, unless those of one view are more."""

Prepare = Callable[[NDArray[np.uint8]], Tensor]
"""Pixels (H, W, 3) of an upright frame → what the network is to see of it."""


class ViewFrameReader:
    """The prepared frames of each view, in their order. The frames of a view that was looked at before are read again from the begin, and
    so is the video where views share more frames than may be kept."""

    def __init__(
        self,
        data: NDArray[np.uint8],
        numbers: Sequence[Sequence[int]],
        rate: float,
        limits: ClipLimits,
        prepare: Prepare,
        frame_bytes: int,
    ) -> None:
        """numbers: of the frames of each view, in the order in which the network sees them, by the video's mean rate, frames a second.
        frame_bytes: of a prepared frame."""
        self._data, self._numbers, self._rate, self._limits, self._prepare = data, numbers, rate, limits, prepare
        self._readings, frames = plan_decoding_passes(numbers, MOST_BYTES // frame_bytes)
        self.nbytes = frames * frame_bytes
        """Memory of the prepared frames, at most."""
        self.waited_s = 0.0
        """Seconds of waiting for frames that were not there yet; decoding itself runs beside the network."""
        self._decoded = 0
        self._error: Exception | None = None
        self._killed = False
        """Once: a second time the video may be to blame."""
        self._reader: _Reader | None = self._read(0)

    @property
    def decoded(self) -> int:
        """Frames of the video that were decoded, those that no view sees included."""
        return self._decoded + (0 if self._reader is None else self._reader.decoded)

    def is_ready(self, view: int) -> bool:
        """Whether nothing has to be waited for."""
        reader = self._reader
        return self._error is not None or (reader is not None and view < reader.end and reader.is_ready(view))

    def take(self, view: int, until: float) -> list[Tensor]:
        """The frames of a view. The same view may be taken again.

        until: monotonic seconds until which they may be waited for. Raises NotYet, and UnusableInput for a video that cannot be read. What
        has failed once fails for ever: with whomever its next step is taken, all get to know at once.
        """
        if self._error is not None:
            raise self._error.with_traceback(None)
        if self._reader is None or not self._reader.view <= view < self._reader.end:
            self.close()
            self._reader = self._read(view)
        began = time.monotonic()
        try:
            return self._reader.take(view, until)
        except FrameNotReady:
            raise
        except VideoError as error:
            if was_killed(error) and not self._killed:
                self._killed = True
                self.close()
                return self.take(view, until)
            self._error = InvalidInput(str(error))
        except Exception as error:
            self._error = error
        finally:
            self.waited_s += time.monotonic() - began
        self.close()
        raise self._error.with_traceback(None)

    def close(self) -> None:
        self._decoded = self.decoded
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def _read(self, view: int) -> _Reader:
        end = next(end for end in self._readings if view < end)
        wanted = sorted({number for numbers in self._numbers[view:end] for number in numbers})
        return _Reader(NumberedFrames(self._data.data, wanted, self._rate, self._limits), self._numbers[:end], self._prepare, view)

    def __del__(self) -> None:
        if hasattr(self, "_reader"):  # its thread would read on
            self.close()


def plan_decoding_passes(numbers: Sequence[Sequence[int]], most: int) -> tuple[list[int], int]:
    """Return where the views of each reading of a video end, so that it keeps `most` frames or those of one view, and how many one keeps.

    numbers: of the frames of each view."""
    ends: list[int] = []
    first, kept, most_kept = 0, 0, 0
    for view in range(len(numbers)):
        together = _kept(numbers[first : view + 1])
        if view > first and together > most:
            ends.append(view)
            first, most_kept, together = view, max(most_kept, kept), _kept(numbers[view : view + 1])
        kept = together
    return [*ends, len(numbers)], max(most_kept, kept)


def _kept(numbers: Sequence[Sequence[int]]) -> int:
    """Return how many frames are kept at once, at most: those due while a view is looked at that it or a later one sees."""
    last = _last(numbers)
    frames, until = np.array(list(last)), np.array(list(last.values()))
    ends = _ends(numbers)
    return max(int(((until >= view) & (frames <= ends[min(view + AHEAD, len(ends) - 1)])).sum()) for view in range(len(ends)))


def _last(numbers: Sequence[Sequence[int]], begin: int = 0) -> dict[int, int]:
    """Frame → the last view that sees it, of the views from `begin` on."""
    return {number: view for view in range(begin, len(numbers)) for number in numbers[view]}


def _ends(numbers: Sequence[Sequence[int]]) -> list[int]:
    """Last frame that each view or one before it sees."""
    return list(accumulate(map(max, numbers), max))


class InMemoryFrames:
    """Prepared frames that are there already: every view has the same."""

    decoded = 0
    waited_s = 0.0

    def __init__(self, frames: list[Tensor]) -> None:
        self._frames = frames

    def is_ready(self, view: int) -> bool:
        return True

    def take(self, view: int, until: float) -> list[Tensor]:
        return self._frames

    def close(self) -> None:
        """Nothing is open."""


class _Reader:
    """A thread that reads the frames of views, from one on."""

    def __init__(self, frames: NumberedFrames, numbers: Sequence[Sequence[int]], prepare: Prepare, view: int) -> None:
        self.view = view
        """The one that was asked for last."""
        self.end = len(numbers)
        """Number of views that are read, those before included."""
        self._frames, self._numbers, self._prepare = frames, numbers, prepare
        self._last, self._ends = _last(numbers, view), _ends(numbers)
        self._ready: dict[int, Tensor] = {}
        """Frames that a view still needs, by number."""
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._ended = self._closed = False
        self._thread = threading.Thread(target=self._read_all, name="views", daemon=True)
        self._thread.start()

    @property
    def decoded(self) -> int:
        return self._frames.decoded

    def is_ready(self, view: int) -> bool:
        with self._changed:
            return self._ended or self._has(self._numbers[view])

    def take(self, view: int, until: float) -> list[Tensor]:
        """Raises VideoError, NotYet, and whatever went wrong here."""
        wanted = self._numbers[view]
        with self._changed:
            self.view = view
            self._ready = {number: frame for number, frame in self._ready.items() if self._last[number] >= view}
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended or self._has(wanted), max(0.0, until - time.monotonic()))
            if self._has(wanted):
                return [self._ready[number] for number in wanted]
            if not self._ended:
                raise FrameNotReady
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
        except Exception as error:
            self._error = error.with_traceback(None)  # whose frames hold a frame
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _is_due(self, number: int) -> bool:
        """Views overlap, so what a later one sees first may lie before the end of this one."""
        return number <= self._ends[min(self.view + AHEAD, len(self._ends) - 1)]
