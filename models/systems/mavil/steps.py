"""MAViL in steps of one window: a spectrogram of the bundle's length, a clip, or a clip with a spectrogram.

The scores of a window are sigmoids or a softmax, as the network was trained; those of a job are the mean over its windows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from models.bundle import BundleSpec
from models.layers.forward import patch_token_map
from models.layers.stepwise import InProgress, InvalidInput, JobState, StepCompletion, Tensors
from models.media.video import FrameNotReady
from models.merge_schedule import MergeSchedule
from models.systems.clips.steps import FRAME_WAIT_S, IDLE_COST, ViewTrace
from models.systems.mavil.model import MAViL, MAViLOutput
from models.systems.mavil.window_sources import SpectrogramWindows, WindowInput, WindowSource, WindowSourceFactory

Modality = Literal["both", "sound", "sight"]


@dataclass(frozen=True)
class MergeSchedules:
    sound: MergeSchedule
    sight: MergeSchedule

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> MergeSchedules:
        """Read `merge`, r of each block, and `merge_sight`, the same for the video half if it differs."""
        merge = options.get("merge") or ()
        sight = options.get("merge_sight")
        return cls(MergeSchedule.from_list(merge), MergeSchedule.from_list(merge if sight is None else sight))


@dataclass(frozen=True)
class WindowScores(JobState):
    """A job's state: the scores of its windows so far, and the source of the next ones."""

    source: WindowSource
    use: Modality
    merge: MergeSchedules
    scores: Tensor
    """Sum over the windows so far, float64 (classes,)."""
    window: int = 0
    tokens: tuple[int, int] = (0, 0)
    """Number of tokens before the first and after the last block, both halves together."""
    timeline: ViewTrace = field(default_factory=ViewTrace)
    grids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Grids of `groups`, by name: times and mel bins of patches of a spectrogram; times, rows and columns of those of a clip."""

    @property
    def done(self) -> int:
        return self.window

    @property
    def total(self) -> int:
        return self.source.total

    @property
    def unit(self) -> str:
        """Return the name of its steps: views for clips alone, otherwise windows."""
        return "views" if self.use == "sight" else "windows"

    @property
    def nbytes(self) -> int:
        return self.source.nbytes + self.scores.nbytes + self.timeline.nbytes

    def add_window(self, scores: Tensor, tokens: tuple[int, int], groups: Mapping[str, Tensor]) -> WindowScores:
        """Return the state with the scores of one more window."""
        timeline = self.timeline.after(scores, groups)
        return replace(self, scores=self.scores + scores, window=self.window + 1, tokens=tokens, timeline=timeline)

    def partial_outputs(self) -> dict[str, Tensor]:
        """Return `timeline` float32 (windows so far, classes) and `frames_at` float64 (windows so far, T), if requested."""
        outputs = self.timeline.table()
        return outputs | {"frames_at": self.source.seconds[: self.window]} if outputs and self.source.seconds is not None else outputs

    def outputs(self) -> dict[str, Tensor]:
        """Return scores float32 (classes,), their mean over the windows; tokens int32 (2,); `clip_stats`; the timeline; and traces with
        grids."""
        traces = self.timeline.traces()
        grids = {name: torch.tensor(grid, dtype=torch.int32) for name, grid in self.grids.items()} if traces else {}
        return {
            "scores": (self.scores / self.window).float(),
            "tokens": torch.tensor(self.tokens, dtype=torch.int32),
            **self.source.stats(),
            **self.partial_outputs(),
            **traces,
            **grids,
        }


class MAViLSteps:
    """MAViL as a stepwise model.

    A job brings `sound` float32 (n,), full scale 1, at the bundle's sample rate; or `video` uint8 (bytes,) with `info` float64 (5,), width,
    height, frames per second, frames and seconds, or `frames` uint8 (T, H, W, 3), the clip itself; or both.

    The output: `scores` float32 (classes,), the mean over the windows, and `tokens` int32 (2,), the number of a window's tokens before the
    first and after the last block, both halves together. Options `timeline` and `trace` add the same as in `ClipSteps`, per window:
    `groups` and `grid` are those of the audio, or of the video without audio; with both, `groups_sight` and `grid_sight` are those of the
    video.
    """

    unit = "windows"

    def __init__(self, model: MAViL, make_spectrograms: Callable[[list[Tensor]], Tensor], source_factory: WindowSourceFactory) -> None:
        """Wrap a model. make_spectrograms: windows of audio → spectrograms (B, 1, frames, mel bins)."""
        self._model, self._make_spectrograms, self._source_factory = model, make_spectrograms, source_factory

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        """Start jobs. options: `use`, `both`, `sound` or `sight`; those of `WindowSourceFactory.make` and `MergeSchedules.from_options`.
        None is the same as missing: the default."""
        return [self._start(job, job_options) for job, job_options in zip(arrays, options, strict=True)]

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | StepCompletion]:
        """Classify the next window of each job whose frames have been read; other states stay as they are."""
        jobs_states = [cast(WindowScores, state) for state in states]
        ready = _ready_windows(jobs_states)
        alike: dict[tuple[Modality, MergeSchedules, bool], list[int]] = {}
        for job in ready:
            alike.setdefault((jobs_states[job].use, jobs_states[job].merge, jobs_states[job].timeline.keeps_groups), []).append(job)
        for (use, merge, traced), jobs in alike.items():
            output = self._forward(use, merge, [ready[job] for job in jobs], traced)
            scores, groups = self._window_scores(output), self._token_groups(output, use, merge) if traced else {}
            for row, job in enumerate(jobs):
                row_groups = {name: group[row] for name, group in groups.items()}
                jobs_states[job] = jobs_states[job].add_window(scores[row], (output.tokens_in, output.tokens_out), row_groups)
        return [_outcome(state, preview) for state, preview in zip(jobs_states, previews, strict=True)]

    def cost(self, state: JobState) -> float:
        """Return the relative cost of the next step, almost nothing while frames are not read yet."""
        assert isinstance(state, WindowScores)
        return 1.0 if state.source.is_ready(state.window) else IDLE_COST

    def _start(self, job: Tensors, options: Mapping[str, Any]) -> WindowScores:
        use = self._use(job, options)
        scores = torch.zeros(self._model.config.classes, dtype=torch.float64, device=next(self._model.parameters()).device)
        source = self._source_factory.make(job, options, with_audio=use != "sight", with_video=use != "sound")
        return WindowScores(
            source, use, MergeSchedules.from_options(options), scores, timeline=ViewTrace.from_options(options), grids=self._grids(use)
        )

    def _use(self, job: Tensors, options: Mapping[str, Any]) -> Modality:
        """Return the modalities to classify. Raises InvalidInput for those that the network was not trained for, and if an array is
        missing."""
        is_fused = self._model.config.fusion_depth > 0
        default: Modality = "both" if is_fused else "sound" if "sound" in job else "sight"
        use: Modality = options.get("use") or default
        if is_fused and use != "both":
            raise InvalidInput(f"use: {use}: this bundle classifies sound and sight together: use both")
        if not is_fused and use == "both":
            raise InvalidInput("use: both: this bundle classifies sound and sight apart: use sound or sight")
        if use != "sound" and not self._model.config.sees:
            raise InvalidInput(f"use: {use}: this bundle only hears: send sound")
        if use != "sight" and "sound" not in job:
            raise InvalidInput("audio: this bundle needs sound")
        if use != "sound" and not {"video", "frames"} & job.keys():
            raise InvalidInput("video: this bundle needs a clip")
        return use

    def _window_scores(self, output: MAViLOutput) -> Tensor:
        """Return the scores of each window, float64 (B, classes)."""
        logits = output.logits.double()
        return logits.sigmoid() if self._model.config.multi_label else logits.softmax(dim=-1)

    def _grids(self, use: Modality) -> dict[str, tuple[int, ...]]:
        config = self._model.config
        if use == "sight":
            return {"grid": config.video_grid}
        return {"grid": config.audio_grid} | ({"grid_sight": config.video_grid} if use == "both" else {})

    def _token_groups(self, output: MAViLOutput, use: Modality, merge: MergeSchedules) -> dict[str, Tensor]:
        """Return the token that holds each patch after each block, int32 (B, depth, patches), of the halves in use."""
        config = self._model.config
        halves = {
            "sound": (output.audio_owners, 1 + config.audio_patches, merge.sound),
            "sight": (output.video_owners, 1 + config.video_patches, merge.sight),
        }
        names = {"groups": "sound", "groups_sight": "sight"} if use == "both" else {"groups": use}
        return {
            name: patch_token_map(output.logits, halves[half][0], halves[half][1], halves[half][2].expand(config.depth), 1)
            for name, half in names.items()
        }

    def _forward(self, use: Modality, merge: MergeSchedules, inputs: Sequence[WindowInput], trace: bool) -> MAViLOutput:
        parameter = next(self._model.parameters())
        waveforms = [window.sound for window in inputs if window.sound is not None]
        clips = [window.clip for window in inputs if window.clip is not None]
        audio = self._make_spectrograms(waveforms).to(parameter) if waveforms else None
        video = torch.stack(clips).to(parameter) if clips else None
        if use == "sound":
            assert audio is not None
            return self._model.forward_audio(audio, merge=merge.sound, trace=trace)
        assert video is not None
        if use == "sight":
            return self._model.forward_video(video, merge=merge.sight, trace=trace)
        assert audio is not None
        output: MAViLOutput = self._model(audio, video, merge=merge.sound, video_merge=merge.sight, trace=trace)
        return output


def _ready_windows(states: Sequence[WindowScores]) -> dict[int, WindowInput]:
    """Return the next windows that are ready, by job. Raises InvalidInput."""
    ready = {job: inputs for job, state in enumerate(states) if (inputs := _take_window(state, 0.0)) is not None}
    if not ready and (inputs := _take_window(states[0], FRAME_WAIT_S)) is not None:
        ready[0] = inputs
    return ready


def _take_window(state: WindowScores, patience: float) -> WindowInput | None:
    """Return the next window of a job; None if its frames are not read yet."""
    try:
        return state.source.take(state.window, time.monotonic() + patience)
    except FrameNotReady:
        return None


def _outcome(state: WindowScores, wants_preview: bool) -> InProgress | StepCompletion:
    if state.window < state.source.total:
        return InProgress(state, state.partial_outputs() or None if wants_preview else None)
    state.source.close()
    return StepCompletion(state.outputs())


def mavil_steps(model: nn.Module, spec: BundleSpec, _device: torch.device) -> MAViLSteps:
    """Return MAViL's steps. Raises ValueError for a bundle without the section `sound`, or without `clip` if it has a video half."""
    assert isinstance(model, MAViL)
    if spec.sound is None or (spec.clip is None and model.config.sees):
        raise ValueError("sound and clip: MAViL needs both in bundle.json, and sound alone where it only hears")
    windows = SpectrogramWindows(spec.sound)
    return MAViLSteps(model, windows, WindowSourceFactory(windows, spec.clip, spec.preprocess))
