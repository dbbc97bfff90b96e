"""Detection in windows of several videos together, pass by pass, until they are done or the time of the step is up.

A pass is a few frames for the detector, or a few crops for the network that reads each person, which may take seconds per crop on a CPU.
Other work waits for the end of a step, and the end of a step proves that a worker is alive; the answer does not depend on where steps end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

import numpy as np
import torch
from numpy.typing import NDArray

from models.media.video import SampledFrame
from models.systems.actions.appearance_encoder import AppearanceEncoder
from models.systems.actions.detection_scale import Detail
from models.systems.actions.job_stats import JobStats
from models.systems.actions.pose_estimator import DetectorInput, PoseEstimator
from models.systems.actions.sources import FrameResult, PendingFrame, VideoSource, WindowProgress

STEP_S = 2.0
"""Seconds after which a step starts no other pass."""
WAIT_S = 2.0
"""Seconds that a pass waits for frames: the decoder may have to skip a long part of a video, and large frames take time."""
PASS_S = 1.0
"""Target duration of a pass of crops in seconds."""
FRAMES_AT_ONCE = 4
"""Maximum number of frames of one job in memory."""
CROPS_AT_ONCE = 16


@dataclass(frozen=True)
class WindowJob:
    """A window of a video; `people` is the maximum number of people per frame."""

    source: VideoSource
    window: int
    people: int
    detail: Detail
    account: JobStats

    @property
    def progress(self) -> WindowProgress:
        return self.source.progress(self.window)


class DetectionLoop:
    def __init__(self, pose_estimator: PoseEstimator, describer: AppearanceEncoder | None = None) -> None:
        """Keep the networks. describer: encoder that needs the frames, too."""
        self._pose_estimator = pose_estimator
        self._describer = describer
        self._crops = 1
        """Number of crops in a pass, chosen by the duration of the last pass."""
        self._turn = 0

    def look(self, jobs: Sequence[WindowJob]) -> list[JobStats]:
        """Process the rest of each window until the step is over; results go to `progress`. Raises UnusableInput."""
        accounts = [job.account for job in jobs]
        until = time.monotonic() + STEP_S
        going = [place for place, job in enumerate(jobs) if not job.progress.is_done]  # done if a later part of the step failed
        while going:
            if crops := self._waiting([jobs[i] for i in going]):
                self._read(crops, [jobs[i] for i in going], going, accounts)
            else:
                self._find([jobs[i] for i in going], going, accounts)
            going = [i for i in going if not jobs[i].progress.is_done]
            if time.monotonic() >= until:
                break
        return accounts

    def _waiting(self, jobs: Sequence[WindowJob]) -> list[tuple[PendingFrame, torch.Tensor]]:
        """Select the crops of a pass, one of each job in turn; each pass starts with another job."""
        self._turn += 1
        first = self._turn % len(jobs)
        rounds = zip_longest(*(job.progress.crops() for job in (*jobs[first:], *jobs[:first])))
        return list(islice((crop for one in rounds for crop in one if crop is not None), self._crops))

    def _read(
        self, crops: Sequence[tuple[PendingFrame, torch.Tensor]], jobs: Sequence[WindowJob], places: Sequence[int], accounts: list[JobStats]
    ) -> None:
        started_at = time.monotonic()
        outputs = self._pose_estimator.read(torch.stack([crop for _, crop in crops]))
        seconds = time.monotonic() - started_at
        self._crops = max(1, min(2 * len(crops), int(PASS_S * len(crops) / seconds), CROPS_AT_ONCE))
        for (frame, _), values in zip(crops, outputs, strict=True):
            frame.predictions.append(values)
        for place, job in zip(places, jobs, strict=True):
            count = sum(any(frame is one for one in job.progress.pending) for frame, _ in crops)
            accounts[place] = accounts[place].plus(pose=seconds * count / len(crops))
            self._finish(job.progress)

    def _find(self, jobs: Sequence[WindowJob], places: Sequence[int], accounts: list[JobStats]) -> None:
        """Detect people in the next frames of each job, if they are decoded in time, and drop the frames' pixels."""
        until = time.monotonic() + WAIT_S
        for place, job in zip(places, jobs, strict=True):
            started_at = time.monotonic()
            progress = job.progress
            if not progress.frames:
                progress.frames, progress.all_taken = job.source.take(job.window, FRAMES_AT_ONCE, until)
            accounts[place] = accounts[place].plus(decode=time.monotonic() - started_at)
        started_at = time.monotonic()
        views = [DetectorInput(frame.pixels, *frame.size, job.detail) for job in jobs for frame in job.progress.frames]
        max_people = [job.people for job in jobs for _ in job.progress.frames]
        detections = iter(self._pose_estimator.find(views, max_people)) if views else iter(())
        for job in jobs:
            progress = job.progress
            progress.pending += [PendingFrame.from_frame(frame, next(detections), self._shrunk(frame)) for frame in progress.frames]
        seconds = time.monotonic() - started_at
        for place, job in zip(places, jobs, strict=True):
            count = len(job.progress.frames)
            accounts[place] = accounts[place].plus(pose=seconds * count / max(1, len(views)), frames=count)
            job.progress.frames = []
            self._finish(job.progress)

    def _finish(self, progress: WindowProgress) -> None:
        """Move completed frames to the results, in order: a frame waits for those before it."""
        while progress.pending and progress.pending[0].waiting is None:
            frame = progress.pending.pop(0)
            observations = self._pose_estimator.observe(frame.detections, frame.values)
            result = FrameResult(frame.time, frame.row, frame.rows, observations, frame.cut, frame.detections.size, frame.shrunk)
            progress.results.append(result)

    def _shrunk(self, frame: SampledFrame) -> NDArray[np.uint8] | None:
        return None if self._describer is None else self._describer.shrink(frame.pixels)
