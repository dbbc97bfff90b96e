"""Appearance features of people: MViT, a video network with a box head, encodes clips around them, as in LART's training.

A track is cut into groups of 6 rows; each has the feature of a clip around its middle row, in which the person's box of that row is pooled
(arXiv 2304.01199; `models.people.person_clips`). If the person was not detected in the middle row, an empty box is pooled, as in the
published code.

A clip of the published size takes minutes on a CPU, and one block of the network takes longer than a step may last. So a step computes
parts of blocks and leaves the rest to the next step.
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
from models.systems.mvit.pooling_attention import pause

EncodingSteps = Iterator[int | NDArray[np.float32]]
"""Number of bytes kept in memory after each part, then the feature."""
APPEARANCE_BUDGET_S = 1.0
"""Seconds per step for the encoding of appearance; the part that is running at its end is completed."""


@dataclass(frozen=True)
class BufferedFrame:
    """A frame as the video network sees it; it represents the rows from `row` on."""

    row: int
    pixels: NDArray[np.uint8]
    """(h, w, 3), RGB."""
    size: tuple[int, int]
    """Height and width of the video's frames."""


class AppearanceEncoder:
    def __init__(self, model: MViT, preprocess: Preprocess, clip: Clip) -> None:
        """Check that the network can describe people; raises ValueError if it cannot."""
        if model.config.boxes is None:
            raise ValueError("it classifies whole clips, and a network with a box head is needed: --set boxes says so at its import")
        if clip.stride != int(clip.stride):
            raise ValueError(f"its clips have a stride of {clip.stride:g} frames, and a whole number is needed")
        self._model = model
        self._preprocess = preprocess
        self._frames, self._stride = clip.frames, int(clip.stride)
        self._empty_box_is_zeros = model.config.boxes.aligned
        """Whether the feature of an empty box is zeros without a pass of the network: aligned pooling takes no samples from it."""
        self._turn = 0

    @property
    def values(self) -> int:
        """Number of values of a feature."""
        return int(self._model.head.in_features)

    @property
    def before(self) -> int:
        """Number of rows of a clip before its middle one."""
        return self._frames * self._stride // 2

    @property
    def behind(self) -> int:
        """Number of rows of a clip after its middle one."""
        return self._frames * self._stride - self.before

    def turn(self) -> int:
        """Return a new number on every call, so that each step starts with another job."""
        self._turn += 1
        return self._turn

    def shrink(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize a frame (H, W, 3) to the input size of the network, (h, w, 3)."""
        shrunk: NDArray[np.uint8] = crop_and_resize(torch.from_numpy(frame)[None], self._preprocess.short_side)[0].contiguous().numpy()
        return shrunk

    def describe(self, stills: Sequence[BufferedFrame], track: PersonTrack, middle: int) -> EncodingSteps:
        """Yield the number of bytes kept after each part, then the feature (A,) of the clip around a row of a track. stills: frames by row,
        at least those of the clip."""
        box = track.box_at(middle)
        if box is None and self._empty_box_is_zeros:
            yield np.zeros(self.values, np.float32)
            return
        rows = track.first + clip_frame_indices(
            middle - track.first, track.last + 1 - track.first, frames=self._frames, stride=self._stride
        )
        first_rows = [still.row for still in stills]
        chosen = [stills[max(0, bisect_right(first_rows, row) - 1)] for row in rows.tolist()]
        parameter = next(self._model.parameters())
        images = torch.from_numpy(np.stack([still.pixels for still in chosen])).to(parameter.device)
        pixels = normalise_clip(images, self._preprocess.mean, self._preprocess.std).unsqueeze(0)  # (1, 3, T, h, w)
        x, grid = self._model.embed(pixels.to(parameter.dtype))
        del images, pixels
        yield from pause(x)
        for block in self._model.blocks:
            assert isinstance(block, PoolingBlock)
            x, grid = yield from block.forward_in_parts(x, grid)
        corners = resize_box([0.0] * 4 if box is None else box.tolist(), chosen[0].size, self._preprocess.short_side)
        boxes = torch.cat([corners.new_zeros(1), corners]).unsqueeze(0).to(parameter.device)
        feature: NDArray[np.float32] = self._model.pool_boxes(x, grid, boxes)[0].float().cpu().numpy()
        yield feature


@dataclass
class PartialClip:
    """The clip of a job that was partly encoded when a step ended."""

    person: int = 0
    first: int = -1
    parts: EncodingSteps = field(default_factory=lambda: iter(()))
    nbytes: int = 0
    """Bytes of device memory kept for its next part."""

    def start(self, person: int, first: int, parts: EncodingSteps) -> None:
        self.person, self.first, self.parts, self.nbytes = person, first, parts, 0

    def end(self) -> None:
        self.start(0, -1, iter(()))


@dataclass
class AppearanceQueue:
    """The people of a job, described one clip after another."""

    tracks: list[PersonTrack]
    confirmed: frozenset[int]
    """Numbers of confirmed people; the others are left out of the answer."""
    stills: Sequence[BufferedFrame]
    unfinished: PartialClip
    seconds: float = 0.0

    def next(self, describer: AppearanceEncoder) -> int | None:
        """Return the index of the track with the earliest group that can be described. None if there is none."""
        waiting = [
            (track.described, place)
            for place, track in enumerate(self.tracks)
            if track.person in self.confirmed and track.group(describer.behind) is not None
        ]
        return min(waiting)[1] if waiting else None

    def still_needed(self, describer: AppearanceEncoder) -> tuple[BufferedFrame, ...]:
        """Return the frames that later clips need, of all tracks that are not described to their end."""
        first_rows = [
            max(track.first, track.described - describer.before)
            for track in self.tracks
            if not track.ended or track.described <= track.last
        ]
        if not first_rows:
            return ()
        first = max(0, bisect_right([still.row for still in self.stills], min(first_rows)) - 1)
        return tuple(self.stills[first:])

    def advance(self, describer: AppearanceEncoder, place: int) -> bool:
        """Compute the next part of a track's clip. Return whether it was the last."""
        track, started_at = self.tracks[place], time.monotonic()
        group = track.group(describer.behind)
        assert group is not None
        unfinished = self.unfinished
        if (unfinished.person, unfinished.first) != (track.person, track.described):
            unfinished.start(track.person, track.described, describer.describe(self.stills, track, track.first + group.centre))
        try:
            output = next(unfinished.parts)
        except BaseException:
            unfinished.end()  # an iterator that raised is exhausted: a retried step starts the clip again
            raise
        self.seconds += time.monotonic() - started_at
        if isinstance(output, int):
            unfinished.nbytes = output
            return False
        self.tracks[place] = track.with_appearance(group, output)
        unfinished.end()
        return True


def encode_appearance(describer: AppearanceEncoder, jobs: Sequence[AppearanceQueue], seconds: float) -> None:
    """Describe the people of all jobs, one clip per job in turn, until no clip is left or the time is up. Jobs with an unfinished clip come
    first."""
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
