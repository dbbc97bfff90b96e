"""Steps of a job, window by window: frames, people, identities, appearance if LART reads it, and LART's scores of complete windows.

The last step scores the remaining rows after the end of the video. Except for the answer, memory does not grow with the video.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from models.bundle import BundleSpec
from models.layers.stepwise import InProgress, JobState, StepCompletion, Tensors
from models.systems.actions.appearance_encoder import APPEARANCE_BUDGET_S, AppearanceQueue, BufferedFrame, PartialClip, encode_appearance
from models.systems.actions.detection_loop import DetectionLoop, WindowJob
from models.systems.actions.detection_scale import Detail, cost
from models.systems.actions.job_arrays import detail_of, make_source, track_arrays
from models.systems.actions.job_stats import JobStats
from models.systems.actions.person_tracks import PersonTrack, ScoreAccumulator, TrackDetection, TrackWindow
from models.systems.actions.pipeline import ActionPipeline
from models.systems.actions.pose_estimator import IdentityTracker, PersonObservations
from models.systems.actions.sources import FrameResult, TrackSource, VideoSource

WINDOWS_AT_ONCE = 16
"""Maximum number of windows of LART in a step, of all jobs together: other work waits for them."""


@dataclass(frozen=True)
class ActionState(JobState):
    source: VideoSource | TrackSource
    max_people: int
    detail: Detail
    tracker: IdentityTracker
    window: int = 0
    tracks: tuple[PersonTrack, ...] = ()
    confirmed: frozenset[int] = frozenset()
    account: JobStats = field(default_factory=JobStats)
    stills: tuple[BufferedFrame, ...] = ()
    """Frames of clips that are still to be described, by row."""
    unfinished: PartialClip = field(default_factory=PartialClip)
    """Mutable, unlike the rest: a retried step continues it if it fits, and otherwise starts its clip again."""
    behind: bool = False
    """Whether a person can still be described or a complete window lacks scores: the next step does that first and detects no further."""
    fraction: float = 0.0
    """Fraction of the next window that is processed; above 0 if the last step ended within it."""
    delays: int = 0
    """Number of steps that did not complete a window."""

    @property
    def done(self) -> int:
        return self.window + self.delays

    @property
    def total(self) -> int:
        """Number of steps, assuming that later windows take as many steps each as those so far."""
        left = max(0.0, self.source.windows - self.window - self.fraction)
        steps = max(1.0, self.done / max(self.window + self.fraction, 1.0))
        return self.done + math.ceil(left * steps) + (self.window <= self.source.windows) + self.behind

    @property
    def nbytes(self) -> int:
        stills = sum(still.pixels.nbytes for still in self.stills)
        return self.source.nbytes + sum(track.nbytes for track in self.tracks) + stills + self.unfinished.nbytes

    @property
    def confirmed_tracks(self) -> list[PersonTrack]:
        """Tracks of confirmed people, by first row."""
        return sorted((track for track in self.tracks if track.person in self.confirmed), key=lambda track: (track.first, track.person))

    @property
    def is_last(self) -> bool:
        return self.window >= self.source.windows

    @property
    def is_over(self) -> bool:
        return self.window > self.source.windows and not self.behind


class ActionSteps:
    """Steps of jobs that recognise actions. Inputs and answer: see `models.systems.actions.job_arrays`."""

    unit = "windows"

    def __init__(self, model: ActionPipeline) -> None:
        self._model = model
        self._detection_loop = DetectionLoop(model.pose_estimator, model.describer)

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        """Make the states of jobs. options: `start_s`, `end_s`, `people` and `detail`; None for the whole video and the bundle's defaults.
        Raises UnusableInput."""
        return [self._make_state(job, job_options) for job, job_options in zip(arrays, options, strict=True)]

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | StepCompletion]:
        current = [state for state in states if isinstance(state, ActionState)]
        ahead = iter(self._look([state for state in current if not state.behind]))
        current = self._describe([replace(state, delays=state.delays + 1) if state.behind else next(ahead) for state in current])
        current = self._score(current)
        outcomes: list[InProgress | StepCompletion] = []
        for state, preview in zip(current, previews, strict=True):
            if state.is_over:
                state.source.close()
                arrays = track_arrays(state.confirmed_tracks, self._model.rate, self._model.actions)
                counts = state.account.counts(len(state.confirmed_tracks), state.source.decoded, state.source.seconds)
                outcomes.append(StepCompletion({**arrays, "stages": state.account.stages, "counts": counts}))
            elif preview and not state.fraction:
                since = state.source.rows(state.window - 1)[0] / self._model.rate
                arrays = track_arrays(state.confirmed_tracks, self._model.rate, self._model.actions, since)
                outcomes.append(InProgress(state, arrays))
            else:
                outcomes.append(InProgress(state, None))
        return outcomes

    def cost(self, state: JobState) -> float:
        """Return the number of frames left of the next window, in units of `fast`. 1 for tracks and for steps without detection."""
        assert isinstance(state, ActionState)
        if state.is_last or state.behind or not isinstance(state.source, VideoSource):
            return 1.0
        return max(1.0, (1 - state.fraction) * state.source.frames_at(state.window) * cost(state.detail))

    def _make_state(self, job: Tensors, options: Mapping[str, Any]) -> ActionState:
        source = make_source(job, options, self._model)
        people, detail = int(options.get("people") or self._model.config.people), detail_of(options, self._model)
        return ActionState(source, people, detail, self._model.pose_estimator.follow(self._model.rate))

    def _look(self, states: Sequence[ActionState]) -> list[ActionState]:
        """Detect people in the next window of each job, within the time of a step, and identify them in windows that are complete."""
        watched = {
            job: WindowJob(state.source, state.window, state.max_people, state.detail, state.account)
            for job, state in enumerate(states)
            if isinstance(state.source, VideoSource) and not state.is_last
        }
        accounts = dict(zip(watched, self._detection_loop.look(list(watched.values())), strict=True))
        return [
            self._follow(state, []) if job not in watched else self._update(replace(state, account=accounts[job]), watched[job])
            for job, state in enumerate(states)
        ]

    def _update(self, state: ActionState, watched: WindowJob) -> ActionState:
        progress = watched.progress
        if progress.is_done:
            return self._follow(replace(state, fraction=0.0), progress.results)
        share = min(0.99, max(0.01, progress.completed / watched.source.frames_at(state.window)))
        return replace(state, fraction=share, delays=state.delays + 1)

    def _follow(self, state: ActionState, results: Sequence[FrameResult]) -> ActionState:
        """Extend the tracks by the results of a window; after the last window, drop those that were never confirmed."""
        if state.is_last:
            tracks = tuple(replace(track, ended=True) for track in state.tracks if track.person in state.confirmed)
            return replace(state, window=state.window + 1, tracks=tracks)
        started_at = time.perf_counter()
        tracker, confirmed = copy.deepcopy(state.tracker), set(state.confirmed)
        sightings, lost = list[TrackDetection](), frozenset[int]()
        if isinstance(state.source, TrackSource):
            sightings = state.source.sightings(state.window)
            confirmed |= {one.person for one in sightings}
        for result in results:
            people = result.observations.best(state.max_people)
            sightings += _sightings(result, people, tracker.update(people, result.row, cut=result.cut))
            confirmed |= tracker.confirmed
        if isinstance(state.source, VideoSource):
            lost = frozenset(track.person for track in state.tracks) - tracker.alive
        begun = len({one.person for one in sightings} - {track.person for track in state.tracks})
        tracks = tuple(
            replace(track, ended=track.person in lost)
            for track in self._extend(state, sightings)
            if track.person in confirmed or track.person not in lost
        )
        account = state.account.plus(track=time.perf_counter() - started_at, tracks=begun)
        stills = [BufferedFrame(result.row, result.shrunk, result.size) for result in results if result.shrunk is not None]
        return replace(
            state,
            tracker=tracker,
            window=state.window + 1,
            tracks=tracks,
            confirmed=frozenset(confirmed),
            account=account,
            stills=(*state.stills, *stills),
        )

    def _extend(self, state: ActionState, sightings: Sequence[TrackDetection]) -> list[PersonTrack]:
        """Append detections to the tracks of a job, up to the end of its next window, and start tracks of new people."""
        end, describer = state.source.rows(state.window)[1], self._model.describer
        appearance = 0 if describer is None or isinstance(state.source, TrackSource) else describer.values
        by_person: dict[int, list[TrackDetection]] = {}
        for one in sightings:
            by_person.setdefault(one.person, []).append(one)
        people = {track.person for track in state.tracks}
        empty = [
            PersonTrack.start(some[0], ScoreAccumulator.empty(self._model.rate, some[0].row, self._model.actions), appearance)
            for person, some in by_person.items()
            if person not in people
        ]
        return [track if track.ended else track.with_detections(by_person.get(track.person, []), end) for track in (*state.tracks, *empty)]

    def _describe(self, states: Sequence[ActionState]) -> list[ActionState]:
        """Describe people whose surrounding frames are known, within the time of a step; drop frames that no clip needs."""
        describer = self._model.describer
        if describer is None:
            return list(states)
        jobs = [AppearanceQueue(list(state.tracks), state.confirmed, state.stills, state.unfinished) for state in states]
        encode_appearance(describer, jobs, APPEARANCE_BUDGET_S)
        return [
            replace(
                state,
                tracks=tuple(job.tracks),
                stills=job.still_needed(describer),
                behind=job.next(describer) is not None,
                account=state.account.plus(appearance=job.seconds),
            )
            for state, job in zip(states, jobs, strict=True)
        ]

    def _score(self, states: Sequence[ActionState]) -> list[ActionState]:
        """Score complete windows of all people in all jobs together; each job has its share of a step."""
        started_at = time.perf_counter()
        tracks = [list(state.tracks) for state in states]
        total = 0
        counts = [0] * len(states)
        share = max(1, WINDOWS_AT_ONCE // max(1, len(states)))
        while waiting := self._complete(states, tracks, [share - count for count in counts]):
            scores = self._model.read([window for _, _, window in waiting])
            for (job, place, _), track_scores in zip(waiting, scores, strict=True):
                tracks[job][place] = tracks[job][place].with_scores(track_scores, self._model.config.span)
                counts[job] += 1
                total += 1
        seconds = time.perf_counter() - started_at
        unscored = {job for job, _, _ in self._complete(states, tracks, [1] * len(states))}
        return [
            replace(
                state,
                tracks=tuple(job_tracks),
                behind=job in unscored or (self._model.describer is not None and state.behind),
                account=state.account.plus(actions=seconds * count / max(1, total), windows=count),
            )
            for job, (state, job_tracks, count) in enumerate(zip(states, tracks, counts, strict=True))
        ]

    def _complete(
        self, states: Sequence[ActionState], tracks: Sequence[Sequence[PersonTrack]], limits: Sequence[int]
    ) -> list[tuple[int, int, TrackWindow]]:
        """Return the job, the index of the track in it, and the track's next window, for each that has one. limits: by job."""
        return [
            (job, place, window)
            for job, state in enumerate(states)
            for place, window in islice(self._windows(state, tracks[job]), limits[job])
        ]

    def _windows(self, state: ActionState, tracks: Sequence[PersonTrack]) -> Iterator[tuple[int, TrackWindow]]:
        for place, track in enumerate(tracks):
            if track.person in state.confirmed and (window := track.window(self._model.config.span)) is not None:
                yield place, window


def _sightings(result: FrameResult, people: PersonObservations, numbers: Sequence[int]) -> list[TrackDetection]:
    time = np.array([result.time])
    return [
        TrackDetection(
            person=number,
            row=result.row,
            rows=result.rows,
            token=people.tokens[i],
            box=np.concatenate([time, people.boxes[i]]),
            pose=np.concatenate([time, people.poses[i]]) if people.poses.shape[1] else np.zeros(0),
        )
        for i, number in enumerate(numbers)
    ]


def action_steps(model: nn.Module, _spec: BundleSpec, _device: torch.device) -> ActionSteps:
    assert isinstance(model, ActionPipeline)
    return ActionSteps(model)
