"""Classification of clips by views: a step takes one crop of one view, of several jobs together, and the output is the mean score of all
views (MAE-ST, arXiv 2205.09113; MViTv2, arXiv 2112.01526)."""

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
from models.systems.clips.frame_reader import InMemoryFrames, ViewFrameReader, clip_stats


@dataclass(frozen=True)
class ViewTrace:
    """Scores and traces of the steps of a job so far."""

    keeps_scores: bool = False
    """Whether the scores of each view or window are requested."""
    keeps_groups: bool = False
    """Whether their tokens are traced, too."""
    scores: tuple[Tensor, ...] = ()
    """(classes,) of each step."""
    groups: tuple[Mapping[str, Tensor], ...] = ()
    """Token that holds each patch after each block, by name, int32 (depth, patches), of each traced step."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ViewTrace:
        """Read the options `timeline` and `trace`; the latter implies the former."""
        traced = bool(options.get("trace"))
        return cls(traced or bool(options.get("timeline")), traced)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.scores) + sum(one.nbytes for step in self.groups for one in step.values())

    def after(self, scores: Tensor, groups: Mapping[str, Tensor]) -> ViewTrace:
        """Return the trace after one step more. groups: empty if the step was not traced."""
        if not self.keeps_scores:
            return self
        rows = {name: one.clone() for name, one in groups.items()}  # a row of a batch's tensor would keep the whole batch
        return replace(self, scores=(*self.scores, scores.clone()), groups=(*self.groups, rows) if rows else self.groups)

    def table(self, crops: int = 1) -> dict[str, Tensor]:
        """Return `timeline` float32 (views, classes), the mean over the crops of each whole view; empty unless it is requested."""
        views = len(self.scores) // crops
        if not self.keeps_scores or views == 0:
            return {}
        return {"timeline": torch.stack(self.scores[: views * crops]).view(views, crops, -1).mean(dim=1).float()}

    def traces(self) -> dict[str, Tensor]:
        """Return groups by name, int32 (views, depth, patches)."""
        return {name: torch.stack([step[name] for step in self.groups]) for name in (self.groups[0] if self.groups else ())}


FRAME_WAIT_S = 0.2
"""Time that a step waits for frames if no view has been read; short, so that a slow video does not delay other jobs."""
IDLE_COST = 0.01
ROUNDING = 1e-6
"""Tolerance of times, as a fraction of a frame."""


@dataclass(frozen=True)
class ViewOutput:
    scores: Tensor
    """(B, classes): softmax, or sigmoid where classes do not exclude each other."""
    tokens_in: int
    tokens_out: int
    """Tokens of a view before the first and after the last block."""
    groups: Tensor | None = None
    """If traced: the token that holds each patch after each block, int32 (B, depth, patches)."""


ViewForward = Callable[[Tensor, MergeSchedule, bool], ViewOutput]
"""Function of normalised views (B, 3, T, S, S), the merge schedule, and whether merges are traced."""


@dataclass(frozen=True)
class ClipState(JobState):
    frames: ViewFrameReader | InMemoryFrames
    merge: tuple[int, ...]
    views: ViewCounts
    bytes_kept: int
    """Memory of the video, of its decoder's process, and of prepared frames."""
    view: int = 0
    """Index of the next crop; the crops of a view follow each other."""
    scores: Tensor | None = None
    """(classes,), sum over the views so far."""
    seconds: Tensor | None = None
    """Times of the frames of each view, at the video's mean rate, float64 (views, frames)."""
    timeline: ViewTrace = field(default_factory=ViewTrace)
    video_s: float = 0.0
    """Duration of the part of the video that the views cover."""

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
        """Whether the next crop is traced: of three it is the centre."""
        return self.timeline.keeps_groups and self.view % self.views.crops == self.views.crops // 2


class ClipSteps:
    """A job: `video` uint8 (bytes,) with `info` float64 (5,), width, height, frames a second, frames and seconds; or `frames` uint8
    (T, H, W, 3), which every view is to see: what a step costs is measured with them. Its answer: `scores`
    float32 (classes,), the mean over the views, and `tokens` int32 (2,), those of a view before the first and after the last block;
    and `clip_stats`.

    Options `timeline` and `trace` add `timeline` float32 (views, classes), the scores of each view, and `frames_at` float64 (views, T), the
    seconds of its frames; the latter also `groups` int32 (views, depth, patches), the token that holds each patch of its centre crop after
    each block, and `grid` int32 (3,), times, rows and columns of patches. Previews are the first two of the views so far."""

    unit = "views"
    first_cost = IDLE_COST
    """Cost of a job's first step, which waits for its first view."""

    def __init__(
        self, model: nn.Module, spec: BundleSpec, device: torch.device, forward: ViewForward, *, offset: bool, grid: tuple[int, ...] = ()
    ) -> None:
        """offset: whether whole steps lie between views (`video_views.view_spans`); grid: times, rows and columns of patches, of networks
        whose tokens merge. Raises ValueError for a bundle that does not say how frames are taken and prepared."""
        if spec.clip is None or spec.preprocess is None:
            raise ValueError("clip and preprocess: a network that sees clips needs both in bundle.json")
        self._clip, self._preprocess = spec.clip, spec.preprocess
        self._views = architectures()[spec.architecture].views(spec.config)
        self._device, self._forward, self._offset, self._grid = device, forward, offset, grid
        self._dtype = next(model.parameters()).dtype
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1, 1) for values in (spec.preprocess.mean, spec.preprocess.std))

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        """Start jobs. Options: `views`, `crops` (None: as in the published test), `start_s`, `end_s` (None: the whole video), and `merge`,
        r of every block."""
        return [self._start_job(job, job_options) for job, job_options in zip(arrays, options, strict=True)]

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | StepCompletion]:
        """Compute the next view of each job whose frames have been read; the others stay as they are."""
        clips = [state for state in states if isinstance(state, ClipState)]
        ready = self._ready(clips)
        outcomes: list[InProgress | StepCompletion] = [InProgress(state) for state in clips]
        for merge, traced in {(clips[job].merge, clips[job].is_traced) for job in ready}:
            jobs = [job for job in ready if (clips[job].merge, clips[job].is_traced) == (merge, traced)]
            output = self._forward(
                torch.stack([ready[job] for job in jobs]).to(self._device, self._dtype), MergeSchedule.from_list(merge), traced
            )
            tokens = token_counts(len(jobs), output.tokens_in, output.tokens_out)
            groups = [None] * len(jobs) if output.groups is None else output.groups.cpu()
            for job, scores, counts, job_groups in zip(jobs, output.scores.cpu().float(), tokens, groups, strict=True):
                after = clips[job].timeline.after(scores, {} if job_groups is None else {"groups": job_groups})
                outcomes[job] = self._after(replace(clips[job], timeline=after), scores, counts, wants_preview=previews[job])
        return outcomes

    def cost(self, state: JobState) -> float:
        """Return IDLE_COST while the frames of the next view are not read."""
        assert isinstance(state, ClipState)
        return 1.0 if state.frames.is_ready(state.view // state.views.crops) else IDLE_COST

    def _start_job(self, job: Tensors, job_options: Mapping[str, Any]) -> ClipState:
        views = ViewCounts(job_options.get("views") or self._views.count, job_options.get("crops") or self._views.crops)
        merge, timeline = tuple(job_options.get("merge") or ()), ViewTrace.from_options(job_options)
        frame_bytes = views.crops * 3 * 4 * self._preprocess.image_size**2
        if "frames" in job:
            prepared = [self._prepare(frame, views.crops) for frame in job["frames"].cpu().numpy()]
            return ClipState(InMemoryFrames(prepared), merge, views, len(prepared) * frame_bytes, timeline=timeline)
        width, height, fps, total, _ = job["info"].tolist()
        first, total = _part(int(total), fps, job_options.get("start_s"), job_options.get("end_s"))
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
        frames = ViewFrameReader(data, numbers.tolist(), fps, limits, lambda pixels: self._prepare(pixels, views.crops), frame_bytes)
        nbytes = data.nbytes + decoder_bytes(int(width), int(height)) + bytes_ahead(int(width), int(height)) + frames.nbytes
        return ClipState(frames, merge, views, nbytes, seconds=numbers.double() / fps, timeline=timeline, video_s=total / fps)

    def _prepare(self, pixels: NDArray[np.uint8], count: int) -> Tensor:
        """Crop and normalise (H, W, 3) → (count, 3, S, S). Three crops cover the long side, one is the centre, as published."""
        size, short_side = self._preprocess.image_size, self._preprocess.short_side
        frame = torch.from_numpy(pixels).permute(2, 0, 1)[:, None].float()  # (3, 1, H, W)
        squares = crops(frame, short_side=short_side if count == 1 else size, size=size, count=count, smooth=self._clip.smooth)
        return ((squares / 255 - self._mean) / self._std)[:, :, 0]

    def _ready(self, states: Sequence[ClipState]) -> dict[int, Tensor]:
        """Map each job to its next view (3, T, S, S), if that is read. Raises InvalidInput."""
        ready = {job: view for job, state in enumerate(states) if (view := _take_view(state, 0.0)) is not None}
        if not ready and (view := _take_view(states[0], FRAME_WAIT_S)) is not None:
            ready[0] = view
        return ready

    def _after(self, state: ClipState, scores: Tensor, tokens: Tensor, *, wants_preview: bool) -> InProgress | StepCompletion:
        total = scores if state.scores is None else state.scores + scores
        outputs = state.timeline.table(state.views.crops)
        if outputs and state.seconds is not None:
            outputs["frames_at"] = state.seconds[: len(outputs["timeline"])]
        if state.view + 1 < state.total:
            return InProgress(replace(state, view=state.view + 1, scores=total), outputs if wants_preview and outputs else None)
        state.frames.close()
        counts = clip_stats(state.frames, state.video_s)
        traces = state.timeline.traces()
        if traces:
            traces["grid"] = torch.tensor(self._grid, dtype=torch.int32)
        return StepCompletion({"scores": total / state.total, "tokens": tokens, **counts, **outputs, **traces})


def _part(total: int, fps: float, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """Return the first frame and the number of frames (at least 1) between two times, at the video's mean rate."""
    first = math.ceil(min(total - 1, (start_s or 0.0) * fps - ROUNDING))
    end = total if end_s is None else math.ceil(min(total, end_s * fps - ROUNDING))
    return first, max(1, end - first)


def _take_view(state: ClipState, patience: float) -> Tensor | None:
    """Return the next view (3, T, S, S), or None if it is not read in time."""
    view, crop = divmod(state.view, state.views.crops)
    try:
        frames = state.frames.take(view, time.monotonic() + patience)
    except FrameNotReady:
        return None
    return torch.stack([frame[crop] for frame in frames], dim=1)
