"""Clips are classified view by view: a step looks at one crop of one view, of several jobs together, and the mean of the views' scores is
the answer (MAE-ST, arXiv 2205.09113; MViTv2, arXiv 2112.01526)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.bundle import BundleSpec
from models.layers.forward import token_counts
from models.layers.stepwise import InProgress, JobState, StepCompletion, Tensors
from models.media.clip_sampling import crops, view_frames
from models.media.video import ClipLimits, FrameNotReady, bytes_ahead, decoder_bytes
from models.merge_schedule import MergeSchedule
from models.registry import ViewCounts, architectures
from models.systems.clips.account import clip_stats
from models.systems.clips.frame_reader import InMemoryFrames, ViewFrameReader
from models.systems.clips.view_trace import ViewTrace

FRAME_WAIT_S = 0.2
"""A step in which no view has been read yet waits so long: what is slow to read must not keep others from theirs."""
IDLE_COST = 0.01
"""Cost of a step that waits."""
ROUNDING = 1e-6
"""Part of a frame below which a time is taken for the frame's own."""


@dataclass(frozen=True)
class ViewOutput:
    """A network's answer to views."""

    scores: Tensor
    """(B, classes): softmax, or sigmoid where classes do not exclude each other."""
    tokens_in: int
    tokens_out: int
    """Tokens of a view before the first and after the last block."""
    groups: Tensor | None = None
    """If traced: the token that holds each patch after each block, int32 (B, depth, patches)."""


ViewForward = Callable[[Tensor, MergeSchedule, bool], ViewOutput]
"""Normalised views (B, 3, T, S, S), how their tokens merge, and whether that is traced."""


@dataclass(frozen=True)
class ClipState(JobState):
    """How far a job has come."""

    frames: ViewFrameReader | InMemoryFrames
    merge: tuple[int, ...]
    views: ViewCounts
    bytes_kept: int
    """Memory of the video, of the process that reads it, and of prepared frames."""
    view: int = 0
    """The next one; the crops of a view follow each other."""
    scores: Tensor | None = None
    """(classes,), sum over the views so far."""
    seconds: Tensor | None = None
    """Times of the frames of each view, at the video's mean rate, float64 (views, frames)."""
    timeline: ViewTrace = field(default_factory=ViewTrace)
    video_s: float = 0.0
    """Seconds of the part that the views are spread over."""

    @property
    def done(self) -> int:
        return self.view

    @property
    def total(self) -> int:
        return self.views.count * self.views.crops

    @property
    def nbytes(self) -> int:
        return self.bytes_kept + self.timeline.nbytes

    @property
    def is_traced(self) -> bool:
        """Whether the next view is: of three crops it is the centre."""
        return self.timeline.traced and self.view % self.views.crops == self.views.crops // 2


class ClipSteps:
    """A job: `video` uint8 (bytes,) with `info` float64 (5,), width, height, frames a second, frames and seconds; or `frames` uint8
    (T, H, W, 3), which every view is to see: what a step costs is measured with them. Its answer: `scores`
    float32 (classes,), the mean over the views, and `tokens` int32 (2,), those of a view before the first and after the last block;
    and `clip_account`.

    Options `timeline` and `trace` add `timeline` float32 (views, classes), the scores of each view, and `frames_at` float64 (views, T), the
    seconds of its frames; the latter also `groups` int32 (views, depth, patches), the token that holds each patch of its centre crop after
    each block, and `grid` int32 (3,), times, rows and columns of patches. Previews are the first two of the views so far."""

    unit = "views"
    first_cost = IDLE_COST
    """The step in which a job starts costs so much: its first view is yet to be read."""

    def __init__(
        self, model: nn.Module, spec: BundleSpec, device: torch.device, see: ViewForward, *, offset: bool, grid: tuple[int, ...] = ()
    ) -> None:
        """offset: whether whole steps lie between views (`video_views.view_spans`); grid: times, rows and columns of patches, of networks
        whose tokens merge. Raises ValueError for a bundle that does not say how frames are taken and prepared."""
        if spec.clip is None or spec.preprocess is None:
            raise ValueError("clip and preprocess: a network that sees clips needs both in bundle.json")
        self._clip, self._preprocess = spec.clip, spec.preprocess
        self._views = architectures()[spec.architecture].views(spec.config)
        self._device, self._see, self._offset, self._grid = device, see, offset, grid
        self._dtype = next(model.parameters()).dtype
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1, 1) for values in (spec.preprocess.mean, spec.preprocess.std))

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        """options: `views`, `crops`, `start_s`, `end_s`, None for those of the published test and for all of the video; and `merge`, r of
        every block."""
        return [self._begin(job, asked) for job, asked in zip(arrays, options, strict=True)]

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | StepCompletion]:
        """The next view of each whose frames have been read; the others stay as they are."""
        viewing = [state for state in states if isinstance(state, ClipState)]
        ready = self._ready(viewing)
        outcomes: list[InProgress | StepCompletion] = [InProgress(state) for state in viewing]
        for merge, traced in {(viewing[job].merge, viewing[job].is_traced) for job in ready}:
            jobs = [job for job in ready if (viewing[job].merge, viewing[job].is_traced) == (merge, traced)]
            seen = self._see(
                torch.stack([ready[job] for job in jobs]).to(self._device, self._dtype), MergeSchedule.from_list(merge), traced
            )
            tokens = token_counts(len(jobs), seen.tokens_in, seen.tokens_out)
            groups = [None] * len(jobs) if seen.groups is None else seen.groups.cpu()
            for job, scores, counts, held in zip(jobs, seen.scores.cpu().float(), tokens, groups, strict=True):
                after = viewing[job].timeline.after(scores, {} if held is None else {"groups": held})
                outcomes[job] = self._after(replace(viewing[job], timeline=after), scores, counts, wants_preview=previews[job])
        return outcomes

    def cost(self, state: JobState) -> float:
        """Next to nothing while a view is still to be read."""
        assert isinstance(state, ClipState)
        return 1.0 if state.frames.is_ready(state.view // state.views.crops) else IDLE_COST

    def _begin(self, job: Tensors, asked: Mapping[str, Any]) -> ClipState:
        views = ViewCounts(asked.get("views") or self._views.count, asked.get("crops") or self._views.crops)
        merge, timeline = tuple(asked.get("merge") or ()), ViewTrace.of(asked)
        frame_bytes = views.crops * 3 * 4 * self._preprocess.image_size**2
        if "frames" in job:
            given = [self._prepared(frame, views.crops) for frame in job["frames"].cpu().numpy()]
            return ClipState(InMemoryFrames(given), merge, views, len(given) * frame_bytes, timeline=timeline)
        width, height, fps, total, _ = job["info"].tolist()
        first, total = _part(int(total), fps, asked.get("start_s"), asked.get("end_s"))
        numbers = first + view_frames(
            total,
            fps,
            frames=self._clip.frames,
            stride=self._clip.stride,
            views=views.count,
            offset=self._offset,
            rate=self._clip.rate,
        )
        data, limits = job["video"].cpu().numpy(), ClipLimits.from_accepted(int(width), int(height))
        frames = ViewFrameReader(data, numbers.tolist(), fps, limits, lambda pixels: self._prepared(pixels, views.crops), frame_bytes)
        nbytes = data.nbytes + decoder_bytes(int(width), int(height)) + bytes_ahead(int(width), int(height)) + frames.nbytes
        return ClipState(frames, merge, views, nbytes, seconds=numbers.double() / fps, timeline=timeline, video_s=total / fps)

    def _prepared(self, pixels: NDArray[np.uint8], count: int) -> Tensor:
        """(H, W, 3) → normalised squares (count, 3, S, S). Three of them take the short side as it is, one its centre, as published."""
        size, short_side = self._preprocess.image_size, self._preprocess.short_side
        frame = torch.from_numpy(pixels).permute(2, 0, 1)[:, None].float()  # (3, 1, H, W)
        squares = crops(frame, short_side=short_side if count == 1 else size, size=size, count=count, smooth=self._clip.smooth)
        return ((squares / 255 - self._mean) / self._std)[:, :, 0]

    def _ready(self, states: Sequence[ClipState]) -> dict[int, Tensor]:
        """Job → its next view (3, T, S, S). Raises UnusableInput."""
        ready = {job: view for job, state in enumerate(states) if (view := _taken(state, 0.0)) is not None}
        if not ready and (view := _taken(states[0], FRAME_WAIT_S)) is not None:
            ready[0] = view
        return ready

    def _after(self, state: ClipState, scores: Tensor, tokens: Tensor, *, wants_preview: bool) -> InProgress | StepCompletion:
        total = scores if state.scores is None else state.scores + scores
        told = state.timeline.table(state.views.crops)
        if told and state.seconds is not None:
            told["frames_at"] = state.seconds[: len(told["timeline"])]
        if state.view + 1 < state.total:
            return InProgress(replace(state, view=state.view + 1, scores=total), told if wants_preview and told else None)
        state.frames.close()
        counts = clip_stats(state.frames, state.video_s)
        traces = state.timeline.traces()
        if traces:
            traces["grid"] = torch.tensor(self._grid, dtype=torch.int32)
        return StepCompletion({"scores": total / state.total, "tokens": tokens, **counts, **told, **traces})


def _part(total: int, fps: float, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """First frame and number of frames between two times, which may be any, at the video's mean rate; at least one."""
    first = math.ceil(min(total - 1, (start_s or 0.0) * fps - ROUNDING))
    end = total if end_s is None else math.ceil(min(total, end_s * fps - ROUNDING))
    return first, max(1, end - first)


def _taken(state: ClipState, patience: float) -> Tensor | None:
    """(3, T, S, S); None: not yet."""
    view, crop = divmod(state.view, state.views.crops)
    try:
        frames = state.frames.take(view, time.monotonic() + patience)
    except FrameNotReady:
        return None
    return torch.stack([frame[crop] for frame in frames], dim=1)
