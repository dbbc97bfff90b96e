"""What people look like: features of clips around them, by a video network with a box head, as LART was trained on them (MViT).

A track is cut into groups of 6 rows; each has the feature of a clip around its middle row, in which the person's box of that row is pooled
(arXiv 2304.01199; `models.people.clips`). Where the person was not seen in the middle row the feature is zeros: the published code pools an
empty box there, which gives the same.

A clip of the published size takes a CPU minutes, and one block of the network longer than a step may last. So blocks run in a thread of
their own, and a step that ends leaves the block to the next one.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from models.actions.tracks import Track
from models.mvit.model import MViT
from models.people.clips import clip_frames, normalised, shrink, shrunk_box
from models.spec import Clip, Preprocess

DESCRIBE_S = 1.0
"""Seconds of a step in which people are described."""


@dataclass(frozen=True)
class Still:
    """A frame as the video network sees it, which stands for the rows from `row` on."""

    row: int
    pixels: NDArray[np.uint8]
    """(h, w, 3), RGB."""
    size: tuple[int, int]
    """Height and width of the video's frames."""


class Describer:
    def __init__(self, model: MViT, preprocess: Preprocess, clip: Clip) -> None:
        """Raises ValueError for a network that cannot describe people."""
        if model.config.boxes is None:
            raise ValueError("it classifies whole clips, and a network with a box head is needed: --set boxes says so at its import")
        if clip.stride != int(clip.stride):
            raise ValueError(f"its clips have a stride of {clip.stride:g} frames, and a whole number is needed")
        self._model = model
        self._preprocess = preprocess
        self._frames, self._stride = clip.frames, int(clip.stride)
        self._turn = 0

    @property
    def values(self) -> int:
        """Number of values of a feature."""
        return int(self._model.head.in_features)

    @property
    def before(self) -> int:
        """Rows of a clip before its middle one."""
        return self._frames * self._stride // 2

    @property
    def behind(self) -> int:
        """Rows of a clip behind its middle one."""
        return self._frames * self._stride - self.before

    def turn(self) -> int:
        """Another number every time: another job begins each step."""
        self._turn += 1
        return self._turn

    def shrink(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A frame (H, W, 3) as the network sees it, (h, w, 3)."""
        shrunk: NDArray[np.uint8] = shrink(torch.from_numpy(frame)[None], self._preprocess.short_side)[0].contiguous().numpy()
        return shrunk

    def describe(self, stills: Sequence[Still], track: Track, middle: int) -> Iterator[NDArray[np.float32] | None]:
        """The feature (A,) of the clip around a row of a track, after a None for each block of the network. stills: by row, those of the
        clip at least."""
        box = track.box_at(middle)
        if box is None:
            yield np.zeros(self.values, np.float32)
            return
        rows = track.first + clip_frames(middle - track.first, track.last + 1 - track.first, frames=self._frames, stride=self._stride)
        begins = [still.row for still in stills]
        chosen = [stills[max(0, bisect_right(begins, row) - 1)] for row in rows.tolist()]
        parameter = next(self._model.parameters())
        images = torch.from_numpy(np.stack([still.pixels for still in chosen])).to(parameter.device)
        pixels = normalised(images, self._preprocess.mean, self._preprocess.std).unsqueeze(0)  # (1, 3, T, h, w)
        corners = shrunk_box(box.tolist(), chosen[0].size, self._preprocess.short_side)
        x, grid = self._model.embed(pixels.to(parameter.dtype))
        for block in self._model.blocks:
            x, grid = block(x, grid)
            yield None
        boxes = torch.cat([corners.new_zeros(1), corners]).unsqueeze(0).to(parameter.device)
        feature: NDArray[np.float32] = self._model.pool_boxes(x, grid, boxes)[0].float().cpu().numpy()
        yield feature


Blocks = Iterator[NDArray[np.float32] | None]


class Running:
    """One block in a thread. The thread is no reason to stay: whoever ends does not wait for it."""

    def __init__(self, blocks: Blocks) -> None:
        self._done = threading.Event()
        self._feature: NDArray[np.float32] | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(blocks,), name="appearance", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether it is done by then."""
        return self._done.wait(max(0.0, seconds))

    def result(self) -> NDArray[np.float32] | None:
        """What the block gave, once it is done. Raises its error."""
        if self._error is not None:
            raise self._error
        return self._feature

    def _run(self, blocks: Blocks) -> None:
        try:
            with torch.inference_mode():
                self._feature = next(blocks)
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()


@dataclass
class Unfinished:
    """The clip of a job that the network was looking at when a step ended."""

    person: int = 0
    first: int = -1
    """First row of its group."""
    blocks: Blocks = field(default_factory=lambda: iter(()))
    running: Running | None = None

    def begin(self, person: int, first: int, blocks: Blocks) -> None:
        self.person, self.first, self.blocks, self.running = person, first, blocks, None


@dataclass
class Subjects:
    """The people of a job, who are described one clip after the other."""

    tracks: list[Track]
    confirmed: frozenset[int]
    """Numbers of those who are believed; of the others nothing is told."""
    stills: Sequence[Still]
    unfinished: Unfinished
    seconds: float = 0.0
    """Time that it took."""

    def next(self, describer: Describer) -> int | None:
        """Index of the track whose next group can be described and lies earliest. None: there is none."""
        waiting = [
            (track.described, place)
            for place, track in enumerate(self.tracks)
            if track.person in self.confirmed and track.group(describer.behind) is not None
        ]
        return min(waiting)[1] if waiting else None

    def still_needed(self, describer: Describer) -> tuple[Still, ...]:
        """Frames of clips that are still to come, of all tracks that are not described to their end."""
        begins = [
            max(track.first, track.described - describer.before)
            for track in self.tracks
            if not track.ended or track.described <= track.last
        ]
        if not begins:
            return ()
        first = max(0, bisect_right([still.row for still in self.stills], min(begins)) - 1)
        return tuple(self.stills[first:])

    def advance(self, describer: Describer, place: int, until: float) -> bool:
        """Take the next block for a track, if it is done in time. Returns whether its clip is done. until: monotonic seconds."""
        track, began = self.tracks[place], time.monotonic()
        group = track.group(describer.behind)
        assert group is not None
        if (self.unfinished.person, self.unfinished.first) != (track.person, track.described):
            self.unfinished.begin(track.person, track.described, describer.describe(self.stills, track, track.first + group.middle))
        running = self.unfinished.running = self.unfinished.running or Running(self.unfinished.blocks)
        is_done = running.wait(until - time.monotonic())
        self.seconds += time.monotonic() - began
        if not is_done:
            return False
        self.unfinished.running = None
        feature = running.result()
        if feature is None:
            return False
        self.tracks[place] = track.with_appearance(group, feature)
        self.unfinished.begin(0, -1, iter(()))
        return True


def describe(describer: Describer, jobs: Sequence[Subjects], seconds: float) -> None:
    """Describe people of all jobs, a clip of each in turn, until all that can be are described or the time is over. Those come first of
    whom a block is running."""
    until = time.monotonic() + seconds
    turn = describer.turn() % max(1, len(jobs))
    waiting = deque(sorted((*jobs[turn:], *jobs[:turn]), key=lambda job: job.unfinished.running is None))
    while waiting:
        job = waiting.popleft()
        if (place := job.next(describer)) is None:
            continue
        while not job.advance(describer, place, until):
            if time.monotonic() >= until:
                return
        waiting.append(job)
        if time.monotonic() >= until:
            return
