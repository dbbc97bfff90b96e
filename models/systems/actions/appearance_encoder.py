"""The appearance of people: features of clips around them, by a video network with a box head, as LART was trained on them (MViT).

A track is cut into groups of 6 rows; each has the feature of a clip around its middle row, in which the person's box of that row is pooled
(arXiv 2304.01199; `models.people.person_clips`). Where the person was not seen in the middle row an empty box is pooled, as in the
published code.

A clip of the published size takes a CPU minutes, and one block of the network longer than a step may last. So a step takes parts of blocks,
and leaves the rest to the next one.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle_schema import Clip, Preprocess
from models.people.person_clips import clip_frame_indices, crop_and_resize, normalise_clip, resize_box
from models.systems.actions.person_tracks import PersonTrack
from models.systems.mvit.model import MViT, PoolingBlock

EncodingSteps = Iterator[int | NDArray[np.float32]]
"""Bytes that are kept until the next part, after each one; at the end the feature."""
APPEARANCE_BUDGET_S = 1.0
"""Seconds of a step in which people are described; the part that is being computed then is ended."""


@dataclass(frozen=True)
class BufferedFrame:
    """A frame as the video network sees it, which stands for the rows from `row` on."""

    row: int
    pixels: NDArray[np.uint8]
    """(h, w, 3), RGB."""
    size: tuple[int, int]
    """Height and width of the video's frames."""


class AppearanceEncoder:
    def __init__(self, model: MViT, preprocess: Preprocess, clip: Clip) -> None:
        """Raises ValueError for a network that cannot describe people."""
        if model.config.boxes is None:
            raise ValueError("it classifies whole clips, and a network with a box head is needed: --set boxes says so at its import")
        if clip.stride != int(clip.stride):
            raise ValueError(f"its clips have a stride of {clip.stride:g} frames, and a whole number is needed")
        self._model = model
        self._preprocess = preprocess
        self._frames, self._stride = clip.frames, int(clip.stride)
        self._empty_box_is_zeros = model.config.boxes.aligned
        """Its bins have no samples then, and no network need look at the clip."""
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
        shrunk: NDArray[np.uint8] = crop_and_resize(torch.from_numpy(frame)[None], self._preprocess.short_side)[0].contiguous().numpy()
        return shrunk

    def describe(self, stills: Sequence[BufferedFrame], track: PersonTrack, middle: int) -> EncodingSteps:
        """The feature (A,) of the clip around a row of a track, after the bytes that are kept between each two parts. stills: by row, those
        of the clip at least."""
        box = track.box_at(middle)
        if box is None and self._empty_box_is_zeros:
            yield np.zeros(self.values, np.float32)
            return
        rows = track.first + clip_frame_indices(
            middle - track.first, track.last + 1 - track.first, frames=self._frames, stride=self._stride
        )
        begins = [still.row for still in stills]
        chosen = [stills[max(0, bisect_right(begins, row) - 1)] for row in rows.tolist()]
        parameter = next(self._model.parameters())
        images = torch.from_numpy(np.stack([still.pixels for still in chosen])).to(parameter.device)
        pixels = normalise_clip(images, self._preprocess.mean, self._preprocess.std).unsqueeze(0)  # (1, 3, T, h, w)
        corners = resize_box([0.0] * 4 if box is None else box.tolist(), chosen[0].size, self._preprocess.short_side)
        x, grid = self._model.embed(pixels.to(parameter.dtype))
        del images, pixels
        yield x.nbytes
        for block in self._model.blocks:
            assert isinstance(block, PoolingBlock)
            x, grid = yield from block.forward_in_parts(x, grid)
        boxes = torch.cat([corners.new_zeros(1), corners]).unsqueeze(0).to(parameter.device)
        feature: NDArray[np.float32] = self._model.pool_boxes(x, grid, boxes)[0].float().cpu().numpy()
        yield feature


@dataclass
class PartialClip:
    """The clip of a job that the network was looking at when a step ended."""

    person: int = 0
    first: int = -1
    """First row of its group."""
    parts: EncodingSteps = field(default_factory=lambda: iter(()))
    nbytes: int = 0
    """Memory on the device that is kept for its next part, in bytes."""

    def begin(self, person: int, first: int, parts: EncodingSteps) -> None:
        self.person, self.first, self.parts, self.nbytes = person, first, parts, 0

    def end(self) -> None:
        self.begin(0, -1, iter(()))


@dataclass
class AppearanceQueue:
    """The people of a job, who are described one clip after the other."""

    tracks: list[PersonTrack]
    confirmed: frozenset[int]
    """Numbers of those who are believed; of the others nothing is told."""
    stills: Sequence[BufferedFrame]
    unfinished: PartialClip
    seconds: float = 0.0
    """Time that it took."""

    def next(self, describer: AppearanceEncoder) -> int | None:
        """Index of the track whose next group can be described and lies earliest. None: there is none."""
        waiting = [
            (track.described, place)
            for place, track in enumerate(self.tracks)
            if track.person in self.confirmed and track.group(describer.behind) is not None
        ]
        return min(waiting)[1] if waiting else None

    def still_needed(self, describer: AppearanceEncoder) -> tuple[BufferedFrame, ...]:
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

    def advance(self, describer: AppearanceEncoder, place: int) -> bool:
        """Compute the next part of a track's clip. Returns whether it was the last."""
        track, began = self.tracks[place], time.monotonic()
        group = track.group(describer.behind)
        assert group is not None
        unfinished = self.unfinished
        if (unfinished.person, unfinished.first) != (track.person, track.described):
            unfinished.begin(track.person, track.described, describer.describe(self.stills, track, track.first + group.centre))
        try:
            told = next(unfinished.parts)
        except BaseException:
            unfinished.end()  # nothing follows in parts that raised: a step that is taken again begins the clip anew
            raise
        self.seconds += time.monotonic() - began
        if isinstance(told, int):
            unfinished.nbytes = told
            return False
        self.tracks[place] = track.with_appearance(group, told)
        unfinished.end()
        return True


def encode_appearance(describer: AppearanceEncoder, jobs: Sequence[AppearanceQueue], seconds: float) -> None:
    """Describe people of all jobs, a clip of each in turn, until all that can be are described or the time is over. Those come first of
    whom a clip is unfinished."""
    until = time.monotonic() + seconds
    turn = describer.turn() % max(1, len(jobs))
    waiting = deque(sorted((*jobs[turn:], *jobs[:turn]), key=lambda job: not job.unfinished.nbytes))
    while waiting:
        job = waiting.popleft()
        if (place := job.next(describer)) is None:
            continue
        while not job.advance(describer, place):
            if time.monotonic() >= until:
                return
        waiting.append(job)
        if time.monotonic() >= until:
            return
