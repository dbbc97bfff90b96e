"""Actions for the client: what can be asked, the request, and the answer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from opsin import display
from opsin.api_request import Call, call_of, check_names
from opsin.image_encoding import File, file_bytes
from opsin.results import Prediction, Timing, timing_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tracks = File | Mapping[str, Any] | list[Any]
"""JSON or .npz as a file, or an answer's JSON or its `people`."""


class ActionsOptions(TypedDict, total=False):
    """Options of an actions request. One that is left out or None is the service's default. `docs/tasks/actions.md` explains each."""

    model: str | None
    """`name` or `name@version`."""
    top_k: int | None
    threshold: float | None
    start_s: float | None
    end_s: float | None
    people: int | None
    detail: Literal["fast", "standard", "high"] | None
    priority: Literal["high", "normal", "low"] | None
    timeout: float | None
    """Seconds for this call, retries included, in place of the client's."""
    request_id: str | None
    """Under which the service's logs speak of this request."""


@dataclass(frozen=True, slots=True)
class Second:
    """One second of a person: labels, best first."""

    start_s: float
    end_s: float
    labels: tuple[Prediction, ...]
    unsure: bool = False
    """The best label's score lies below that from which the bundle relies on it."""


@dataclass(frozen=True, slots=True)
class TrackedPerson:
    """One person; rows of the arrays are frames in which they were seen."""

    person: int
    first_s: float
    last_s: float
    boxes: NDArray[np.float64]
    """(K, 6): seconds, x, y, width, height in pixels, and score."""
    poses: NDArray[np.float64] | None
    """(K, 17, 3): x, y and score of COCO's keypoints, at the times of the boxes; None where the bundle tells none."""
    actions: tuple[Second, ...]

    @property
    def runs(self) -> tuple[Second, ...]:
        """Seconds in a row with the same best label and the same `unsure`, joined; scores are means, of the labels told in each of them."""
        joined: list[list[Second]] = []
        for second in self.actions:
            if joined and _goes_on(joined[-1][-1], second):
                joined[-1].append(second)
            else:
                joined.append([second])
        return tuple(_mean(run) for run in joined)


@dataclass(frozen=True, slots=True)
class VideoActions:
    """Actions of the people in a video, second by second."""

    people: tuple[TrackedPerson, ...]
    """By first appearance."""
    video: Mapping[str, Any] | None
    """width, height, fps, frames and duration_s; None where tracks were sent."""
    detail: str | None
    """How closely people were looked for; None where tracks were sent."""
    timing: Timing
    model: str
    version: str
    request_id: str
    document: Mapping[str, Any] = field(repr=False)
    """The answer as JSON, which may be sent again as tracks."""
    note: str = ""
    """As `Classification.note`."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the answer as JSON."""
        Path(path).write_text(json.dumps(self.document, ensure_ascii=False), encoding="utf-8")

    def _repr_html_(self) -> str:
        rows: list[str] = []
        for person in self.people:
            colour = display.COLOURS[(person.person - 1) % len(display.COLOURS)]
            for run in [run for run in person.runs if run.labels]:
                best = run.labels[0]
                label = f"{best.label} (unsure)" if run.unsure else best.label
                who = f'<span style="color:{colour}">●</span> person {person.person}'
                when = f"{run.start_s:.1f} – {run.end_s:.1f} s"
                rows.append(f"<tr><td>{who}</td><td>{when}</td><td>{escape(label)}</td><td>{best.score:.2f}</td></tr>")
        found = display.table(rows, ("who", "when", "what", "score")) if rows else "<p>Nobody was found.</p>"
        return found + display.line(self.note)

    def show(self) -> Path | None:
        """Show it in the notebook or the browser: see `opsin.display.show`."""
        return display.show(self)


def actions_call(video: File | None, tracks: Tracks | None, options: ActionsOptions) -> Call:
    """Raises ValueError unless there is a video or tracks."""
    check_names("actions", options, ActionsOptions)
    if (video is None) == (tracks is None):
        raise ValueError("video, tracks: give one of them")
    parts = {"video": file_bytes("video", video)} if video is not None else {"tracks": _tracks(tracks)}
    return call_of("/v1/actions", options, parts=parts)


def video_actions(answer: Mapping[str, Any]) -> VideoActions:
    """The body of `POST /v1/actions`."""
    return VideoActions(
        people=tuple(_person(person) for person in answer["people"]),
        video=answer["video"],
        detail=answer.get("detail"),
        timing=timing_of(answer),
        model=answer["model"],
        version=answer["version"],
        request_id=answer["id"],
        document=answer,
        note=answer.get("note", ""),
    )


def _person(told: Mapping[str, Any]) -> TrackedPerson:
    poses = told.get("poses")
    return TrackedPerson(
        person=told["person"],
        first_s=told["first_s"],
        last_s=told["last_s"],
        boxes=np.array(told["boxes"], np.float64).reshape(-1, 6),
        poses=None if poses is None else np.array([points for _, points in poses], np.float64).reshape(-1, 17, 3),
        actions=tuple(Second(one["start_s"], one["end_s"], _labels(one["labels"]), one.get("unsure", False)) for one in told["actions"]),
    )


def _labels(told: list[Mapping[str, Any]]) -> tuple[Prediction, ...]:
    return tuple(Prediction(label["label"], label["index"], label["score"]) for label in told)


def _goes_on(before: Second, after: Second) -> bool:
    best = [second.labels[0].label if second.labels else None for second in (before, after)]
    return best[0] == best[1] and before.unsure == after.unsure and before.end_s == after.start_s


def _mean(run: list[Second]) -> Second:
    scores = [{label.label: label.score for label in second.labels} for second in run]
    means = [
        Prediction(label.label, label.index, sum(one[label.label] for one in scores) / len(run))
        for label in run[0].labels
        if all(label.label in one for one in scores)
    ]
    best = tuple(sorted(means, key=lambda label: -label.score))
    return Second(run[0].start_s, run[-1].end_s, best, run[0].unsure)


def _tracks(tracks: Any) -> bytes:
    return json.dumps(tracks).encode() if isinstance(tracks, Mapping | list) else file_bytes("tracks", tracks)
