"""MAViL's answers, window by window: each is a spectrogram of the bundle's length, a clip, or a clip beside a spectrogram.

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
from models.layers.classifier_output import token_groups
from models.layers.stepwise import Continuing, Finished, State, Tensors, UnusableInput
from models.media.video import NotYet
from models.merge_schedule import MergeSchedule
from models.systems.clips.steps import PATIENCE_S, WAITING
from models.systems.clips.view_trace import Timeline
from models.systems.mavil.model import Answer, MAViL
from models.systems.mavil.window_sources import Inputs, Listener, Source, Sources

Use = Literal["both", "sound", "sight"]


@dataclass(frozen=True)
class Halves:
    """Merge schedules of both halves."""

    sound: MergeSchedule
    sight: MergeSchedule

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Halves:
        """From `merge`, r of each block, and `merge_sight`, the same of the video half where it is another one."""
        merge = asked.get("merge") or ()
        sight = asked.get("merge_sight")
        return cls(MergeSchedule.of(merge), MergeSchedule.of(merge if sight is None else sight))


@dataclass(frozen=True)
class Scoring(State):
    """How far a job has come."""

    source: Source
    use: Use
    merge: Halves
    scores: Tensor
    """Sum over the windows so far, float64 (classes,)."""
    window: int = 0
    """The next one."""
    tokens: tuple[int, int] = (0, 0)
    """Number of tokens that entered the network and that left it, both halves together."""
    timeline: Timeline = field(default_factory=Timeline)
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
        """Return what its steps are: views of a clip that nothing is heard beside, or windows."""
        return "views" if self.use == "sight" else "windows"

    @property
    def nbytes(self) -> int:
        return self.source.nbytes + self.scores.nbytes + self.timeline.nbytes

    def after(self, scores: Tensor, tokens: tuple[int, int], groups: Mapping[str, Tensor]) -> Scoring:
        """The state with the scores of one window more."""
        timeline = self.timeline.after(scores, groups)
        return replace(self, scores=self.scores + scores, window=self.window + 1, tokens=tokens, timeline=timeline)

    def told(self) -> dict[str, Tensor]:
        """Return `timeline` float32 (windows so far, classes) and `frames_at` float64 (windows so far, T), if they are asked for."""
        told = self.timeline.table()
        return told | {"frames_at": self.source.seconds[: self.window]} if told and self.source.seconds is not None else told

    def outputs(self) -> dict[str, Tensor]:
        """scores float32 (classes,), their mean over the windows; tokens int32 (2,); `clip_account`; `told`; and traces with grids."""
        traces = self.timeline.traces()
        grids = {name: torch.tensor(grid, dtype=torch.int32) for name, grid in self.grids.items()} if traces else {}
        return {
            "scores": (self.scores / self.window).float(),
            "tokens": torch.tensor(self.tokens, dtype=torch.int32),
            **self.source.account(),
            **self.told(),
            **traces,
            **grids,
        }


class MAViLSteps:
    """`Steps` of MAViL. A job brings `sound` float32 (n,), full scale 1, at the bundle's sample rate; or `video` uint8 (bytes,) with `info`
    float64 (5,), width, height, frames a second, frames and seconds, or `frames` uint8 (T, H, W, 3), the clip itself; or both.

    Its answer: `scores` float32 (classes,), the mean over the windows, and `tokens` int32 (2,), those of a window before the first and
    after the last block, both halves together. Options `timeline` and `trace` add what they add to `ClipSteps`, of windows: `groups` and
    `grid` are those of the sound where it is heard, of the video else; `groups_sight` and `grid_sight` those of the video beside it."""

    unit = "windows"

    def __init__(self, model: MAViL, hear: Callable[[list[Tensor]], Tensor], sources: Sources) -> None:
        """hear: windows of sound → spectrograms (B, 1, frames, mel bins)."""
        self._model, self._hear, self._sources = model, hear, sources

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[State]:
        """options: `use`, `both`, `sound` or `sight`; those of `Sources.of` and `Halves.of`. None, as what is missing: the usual."""
        return [self._start(job, asked) for job, asked in zip(arrays, options, strict=True)]

    def step(self, states: Sequence[State], previews: Sequence[bool]) -> list[Continuing | Finished]:
        """Take the next window of each job whose frames have been read; the others stay as they are."""
        scorings = [cast(Scoring, state) for state in states]
        ready = _ready(scorings)
        alike: dict[tuple[Use, Halves, bool], list[int]] = {}
        for job in ready:
            alike.setdefault((scorings[job].use, scorings[job].merge, scorings[job].timeline.traced), []).append(job)
        for (use, merge, traced), jobs in alike.items():
            answer = self._answer(use, merge, [ready[job] for job in jobs], traced)
            scores, groups = self._scores(answer), self._groups(answer, use, merge) if traced else {}
            for row, job in enumerate(jobs):
                held = {name: one[row] for name, one in groups.items()}
                scorings[job] = scorings[job].after(scores[row], (answer.tokens_in, answer.tokens_out), held)
        return [_outcome(state, wanted) for state, wanted in zip(scorings, previews, strict=True)]

    def cost(self, state: State) -> float:
        """Next to nothing while frames are still to be read."""
        assert isinstance(state, Scoring)
        return 1.0 if state.source.is_ready(state.window) else WAITING

    def _start(self, job: Tensors, asked: Mapping[str, Any]) -> Scoring:
        use = self._use(job, asked)
        scores = torch.zeros(self._model.config.classes, dtype=torch.float64, device=next(self._model.parameters()).device)
        source = self._sources.of(job, asked, hears=use != "sight", sees=use != "sound")
        return Scoring(source, use, Halves.of(asked), scores, timeline=Timeline.of(asked), grids=self._grids(use))

    def _use(self, job: Tensors, asked: Mapping[str, Any]) -> Use:
        """Raises UnusableInput for what the network was not trained for, and where an array is missing."""
        is_fused = self._model.config.fusion_depth > 0
        usual: Use = "both" if is_fused else "sound" if "sound" in job else "sight"
        use: Use = asked.get("use") or usual
        if is_fused and use != "both":
            raise UnusableInput(f"use: {use}: this bundle classifies sound and sight together: use both")
        if not is_fused and use == "both":
            raise UnusableInput("use: both: this bundle classifies sound and sight apart: use sound or sight")
        if use != "sound" and not self._model.config.sees:
            raise UnusableInput(f"use: {use}: this bundle only hears: send sound")
        if use != "sight" and "sound" not in job:
            raise UnusableInput("audio: this bundle needs sound")
        if use != "sound" and not {"video", "frames"} & job.keys():
            raise UnusableInput("video: this bundle needs a clip")
        return use

    def _scores(self, answer: Answer) -> Tensor:
        """Return the scores of each window, float64 (B, classes)."""
        logits = answer.logits.double()
        return logits.sigmoid() if self._model.config.multi_label else logits.softmax(dim=-1)

    def _grids(self, use: Use) -> dict[str, tuple[int, ...]]:
        config = self._model.config
        if use == "sight":
            return {"grid": config.video_grid}
        return {"grid": config.audio_grid} | ({"grid_sight": config.video_grid} if use == "both" else {})

    def _groups(self, answer: Answer, use: Use, merge: Halves) -> dict[str, Tensor]:
        """The token that holds each patch after each block, int32 (B, depth, patches), of the halves that were asked."""
        config = self._model.config
        halves = {
            "sound": (answer.heard, 1 + config.audio_patches, merge.sound),
            "sight": (answer.seen, 1 + config.video_patches, merge.sight),
        }
        names = {"groups": "sound", "groups_sight": "sight"} if use == "both" else {"groups": use}
        return {
            name: token_groups(answer.logits, halves[half][0], halves[half][1], halves[half][2].expand(config.depth), 1)
            for name, half in names.items()
        }

    def _answer(self, use: Use, merge: Halves, inputs: Sequence[Inputs], trace: bool) -> Answer:
        like = next(self._model.parameters())
        sounds = [window.sound for window in inputs if window.sound is not None]
        clips = [window.clip for window in inputs if window.clip is not None]
        audio = self._hear(sounds).to(like) if sounds else None
        video = torch.stack(clips).to(like) if clips else None
        if use == "sound":
            assert audio is not None
            return self._model.hear(audio, merge=merge.sound, trace=trace)
        assert video is not None
        if use == "sight":
            return self._model.see(video, merge=merge.sight, trace=trace)
        assert audio is not None
        answer: Answer = self._model(audio, video, merge=merge.sound, video_merge=merge.sight, trace=trace)
        return answer


def _ready(states: Sequence[Scoring]) -> dict[int, Inputs]:
    """Return the next windows that are there, by job. Raises UnusableInput."""
    ready = {job: inputs for job, state in enumerate(states) if (inputs := _taken(state, 0.0)) is not None}
    if not ready and (inputs := _taken(states[0], PATIENCE_S)) is not None:
        ready[0] = inputs
    return ready


def _taken(state: Scoring, patience: float) -> Inputs | None:
    """Return the next window of a job; None where its frames are still to come."""
    try:
        return state.source.take(state.window, time.monotonic() + patience)
    except NotYet:
        return None


def _outcome(state: Scoring, wants_preview: bool) -> Continuing | Finished:
    if state.window < state.source.total:
        return Continuing(state, state.told() or None if wants_preview else None)
    state.source.close()
    return Finished(state.outputs())


def mavil_steps(model: nn.Module, spec: BundleSpec, _device: torch.device) -> MAViLSteps:
    """Raises ValueError for a bundle that does not say how sound becomes spectrograms, or how frames that it sees are taken."""
    assert isinstance(model, MAViL)
    if spec.sound is None or (spec.clip is None and model.config.sees):
        raise ValueError("sound and clip: MAViL needs both in bundle.json, and sound alone where it only hears")
    listener = Listener(spec.sound)
    return MAViLSteps(model, listener, Sources(listener, spec.clip, spec.preprocess))
