"""Frames of a video for several views: read in order, each prepared once, those of the next view while one is computed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.layers.stepwise import InvalidInput
from models.media.video import ClipLimits, FrameNotReady, NumberedFrames, VideoError
from models.processes.confined_process import was_killed

VIEWS_AHEAD = 1
"""Views whose frames are read in advance."""
MAX_FRAMES_BYTES = 256 * 2**20
"""Maximum size of buffered frames, unless those of one view are larger."""

Prepare = Callable[[NDArray[np.uint8]], Tensor]
"""Function: RGB (H, W, 3) of an upright frame → the network's input."""


class ViewFrameReader:
    """The prepared frames of each view, in order. For an earlier view, or if views share more frames than can be buffered, the video is
    decoded again from the start."""

    def __init__(
        self,
        data: NDArray[np.uint8],
        numbers: Sequence[Sequence[int]],
        rate: float,
        limits: ClipLimits,
        prepare: Prepare,
        frame_bytes: int,
    ) -> None:
        """numbers: frame numbers of each view, in order. rate: mean frames per second. frame_bytes: size of a prepared frame."""
        self._data, self._numbers, self._rate, self._limits, self._prepare = data, numbers, rate, limits, prepare
        self._pass_ends, frames = plan_decoding_passes(numbers, MAX_FRAMES_BYTES // frame_bytes)
        self.nbytes = frames * frame_bytes
        self.waited_s = 0.0
        """Seconds spent waiting for frames; decoding runs in parallel with the network."""
        self._decoded = 0
        self._error: Exception | None = None
        self._killed = False
        """The decoder was killed once; a second time the video may be the reason."""
        self._reader: _Reader | None = self._read(0)

    @property
    def decoded(self) -> int:
        """Number of decoded frames, unused ones included."""
        return self._decoded + (0 if self._reader is None else self._reader.decoded)

    def is_ready(self, view: int) -> bool:
        reader = self._reader
        return self._error is not None or (reader is not None and view < reader.end and reader.is_ready(view))

    def take(self, view: int, until: float) -> list[Tensor]:
        """Return the prepared frames (T, …) of a view, which may be taken again. until: deadline in monotonic seconds.

        Raises FrameNotReady, and InvalidInput if the video cannot be read. An error is raised again by every later call.
        """
        if self._error is not None:
            raise self._error.with_traceback(None)
        if self._reader is None or not self._reader.view <= view < self._reader.end:
            self.close()
            self._reader = self._read(view)
        started_at = time.monotonic()
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
            self.waited_s += time.monotonic() - started_at
        self.close()
        raise self._error.with_traceback(None)

    def close(self) -> None:
        self._decoded = self.decoded
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def _read(self, view: int) -> _Reader:
        end = next(end for end in self._pass_ends if view < end)
        frame_numbers = sorted({number for numbers in self._numbers[view:end] for number in numbers})
        return _Reader(NumberedFrames(self._data.data, frame_numbers, self._rate, self._limits), self._numbers[:end], self._prepare, view)

    def __del__(self) -> None:
        if hasattr(self, "_reader"):  # its thread would read on
            self.close()


def plan_decoding_passes(numbers: Sequence[Sequence[int]], max_frames: int) -> tuple[list[int], int]:
    """Plan the decoding passes of a video. Return the end view of each pass and the number of frames buffered at once.

    That is at most `max_frames`, or the frames of one view if these are more. numbers: frame numbers of each view."""
    ends: list[int] = []
    first, buffered, max_buffered = 0, 0, 0
    for view in range(len(numbers)):
        with_view = _max_buffered(numbers[first : view + 1])
        if view > first and with_view > max_frames:
            ends.append(view)
            first, max_buffered, with_view = view, max(max_buffered, buffered), _max_buffered(numbers[view : view + 1])
        buffered = with_view
    return [*ends, len(numbers)], max(max_buffered, buffered)


def _max_buffered(numbers: Sequence[Sequence[int]]) -> int:
    """Return the maximum number of buffered frames: those due at a view that it or a later one needs."""
    last = _last(numbers)
    frames, until = np.array(list(last)), np.array(list(last.values()))
    ends = _ends(numbers)
    return max(int(((until >= view) & (frames <= ends[min(view + VIEWS_AHEAD, len(ends) - 1)])).sum()) for view in range(len(ends)))


def _last(numbers: Sequence[Sequence[int]], first_view: int = 0) -> dict[int, int]:
    """Map each frame number to the last view that needs it, of the views from `first_view` on."""
    return {number: view for view in range(first_view, len(numbers)) for number in numbers[view]}


def _ends(numbers: Sequence[Sequence[int]]) -> list[int]:
    """Return the last frame that each view or one before it needs."""
    return list(accumulate(map(max, numbers), max))


class InMemoryFrames:
    """Prepared frames in memory, the same for every view."""

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


def clip_stats(frames: ViewFrameReader | InMemoryFrames | None, video_s: float = 0.0, sound_s: float = 0.0) -> dict[str, Tensor]:
    """Return `clip_counts` float64 (4,): frames decoded, seconds of waiting for them, seconds of video and of sound."""
    decoded, waited = (0, 0.0) if frames is None else (frames.decoded, frames.waited_s)
    return {"clip_counts": torch.tensor([decoded, waited, video_s, sound_s], dtype=torch.float64)}


class _Reader:
    """A thread that reads the frames of views, from one on."""

    def __init__(self, frames: NumberedFrames, numbers: Sequence[Sequence[int]], prepare: Prepare, view: int) -> None:
        self.view = view
        self.end = len(numbers)
        """End of the views that are read."""
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
        """Wait for the frames (T, …) of a view. Raises VideoError, FrameNotReady and exceptions of the thread."""
        numbers = self._numbers[view]
        with self._changed:
            self.view = view
            self._ready = {number: frame for number, frame in self._ready.items() if self._last[number] >= view}
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended or self._has(numbers), max(0.0, until - time.monotonic()))
            if self._has(numbers):
                return [self._ready[number] for number in numbers]
            if not self._ended:
                raise FrameNotReady
        raise self._error or VideoError("broken", f"it ended before frame {numbers[-1]}")

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
                numbers = [number for number in range(frame.row, frame.end) if number in self._last]
                with self._changed:
                    self._changed.wait_for(lambda numbers=numbers: self._closed or self._is_due(numbers[0]))  # type: ignore[misc]
                    if self._closed:
                        return
                prepared = self._prepare(frame.pixels)
                with self._changed:
                    self._ready |= dict.fromkeys((number for number in numbers if self._last[number] >= self.view), prepared)
                    self._changed.notify_all()
        except Exception as error:
            self._error = error.with_traceback(None)  # whose frames hold a frame
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _is_due(self, number: int) -> bool:
        return number <= self._ends[min(self.view + VIEWS_AHEAD, len(self._ends) - 1)]
