"""Frames of views: failures are final, and the number of frames in memory is bounded."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.layers.stepwise import InvalidInput
from models.media.video import ClipLimits
from models.systems.clips import frame_reader
from models.systems.clips.frame_reader import ViewFrameReader, plan_decoding_passes
from tests.support.videos import STEP, clip, every

FRAME_BYTES = 12
COUNT = 48
OVERLAPPING = [list(range(view, COUNT, 6)) for view in range(6)]
"""Six views of eight frames, which lie between each other."""


def mean(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels).float().mean(dim=(0, 1))


def open_views(
    file: bytes, numbers: list[list[int]], prepare: Callable[[NDArray[np.uint8]], Any] = mean, rate: float = 24.0
) -> ViewFrameReader:
    return ViewFrameReader(np.frombuffer(file, np.uint8), numbers, rate, ClipLimits(), prepare, FRAME_BYTES)


def take_frames(views: ViewFrameReader, view: int) -> list[Tensor]:
    return views.take(view, time.monotonic() + 30)


def test_unreadable_video_is_refused_whenever_it_is_read() -> None:
    file = clip(every(COUNT, 24.0), container="matroska", codec="ffv1", pixels="bgr0")
    views = open_views(file[: len(file) // 100], [[0], [COUNT - 1]])
    with pytest.raises(InvalidInput) as first:
        for view in range(2):
            take_frames(views, view)
    assert views.is_ready(1)
    for _ in range(2):
        with pytest.raises(InvalidInput) as again:
            views.take(1, 0.0)
        assert again.value is first.value


def test_frames_that_last_unequally_are_seen_by_their_times() -> None:
    """The times are as a phone makes them: fast at first, then slowly, with a gap."""
    times = [*(number / 60 for number in range(12)), *(0.3 + number / 10 for number in range(8)), 2.45]
    rate = (len(times) - 1) / times[-1]
    file = clip(times, container="matroska", codec="ffv1", pixels="bgr0")
    [seen] = [take_frames(open_views(file, [list(range(len(times)))], rate=rate), 0)]
    visible = [round((float(frame[0]) - 16) / STEP) for frame in seen]
    assert visible == [int(np.abs(np.array(times) - number / rate).argmin()) for number in range(len(times))]


def test_what_goes_wrong_here_is_not_the_videos_fault() -> None:
    def fail(pixels: NDArray[np.uint8]) -> Tensor:
        raise MemoryError("no room for a frame")

    views = open_views(clip(every(3, 10.0)), [[0, 1]], fail, 10.0)
    for until in (time.monotonic() + 30, 0.0):
        with pytest.raises(MemoryError, match="no room for a frame"):
            views.take(0, until)


@pytest.mark.parametrize(("limit", "ends", "retained"), [(1000, [6], 44), (20, [2, 4, 6], 16), (1, [1, 2, 3, 4, 5, 6], 8)])
def test_views_with_common_frames_are_read_together(limit: int, ends: list[int], retained: int) -> None:
    assert plan_decoding_passes(OVERLAPPING, limit) == (ends, retained)


@pytest.mark.parametrize(("limit", "retained"), [(1000, 44), (20, 16), (1, 8)])
def test_kept_frames_are_bounded_and_views_have_their_own(monkeypatch: pytest.MonkeyPatch, limit: int, retained: int) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    highest = 0

    def count(pixels: NDArray[np.uint8]) -> Tensor:
        nonlocal highest
        made = mean(pixels)
        alive.add(made)
        highest = max(highest, len(alive))
        return made

    monkeypatch.setattr(frame_reader, "MAX_FRAMES_BYTES", limit * FRAME_BYTES)
    images = [np.full((48, 64, 3), 5 * number, np.uint8) for number in range(COUNT)]
    file = clip(every(COUNT, 24.0), container="matroska", codec="ffv1", pixels="bgr0", frames=images)
    views = open_views(file, OVERLAPPING, count)
    for view, numbers in enumerate(OVERLAPPING):
        assert [round(float(frame[0])) for frame in take_frames(views, view)] == [5 * number for number in numbers]
    views.close()
    assert views.nbytes == retained * FRAME_BYTES
    assert 8 <= highest <= retained + 1, "one more is on its way"
