"""Actions for the client: the options, the request, and the answer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from opsin import display
from opsin.api_request import ApiRequest, CallOptions, build_request, check_names
from opsin.image_encoding import FileLike, file_bytes
from opsin.results import Prediction, Timing, common_fields

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tracks = FileLike | Mapping[str, Any] | list[Any]
"""A file in JSON or .npz, or an answer's JSON or its `people`."""


class ActionsOptions(CallOptions, total=False):
    """Options of an actions request; None is the service's default. `docs/tasks/actions.md` explains each of them."""

    model: str | None
    """`name` or `name@version`."""
    top_k: int | None
    threshold: float | None
    start_s: float | None
    end_s: float | None
    people: int | None
    detail: Literal["fast", "standard", "high"] | None


@dataclass(frozen=True, slots=True)
class Second:
    """One second of a person: labels, best first."""

    start_s: float
    end_s: float
    labels: tuple[Prediction, ...]
    unsure: bool = False
    """Whether the best label's score is below the bundle's threshold for a reliable label."""


@dataclass(frozen=True, slots=True)
class TrackedPerson:
    """One person; each row of the arrays is a frame in which the person was detected."""

    person: int
    first_s: float
    last_s: float
    boxes: NDArray[np.float64]
    """(K, 6): seconds, x, y, width, height in pixels, and score."""
    poses: NDArray[np.float64] | None
    """(K, 17, 3): x, y and score of COCO's keypoints, at the times of the boxes; None if the bundle estimates none."""
    actions: tuple[Second, ...]

    @property
    def runs(self) -> tuple[Second, ...]:
        """Consecutive seconds with equal best labels and equal `unsure`, joined. Scores are means, of the labels that all of them have."""
        joined: list[list[Second]] = []
        for second in self.actions:
            if joined and _continues_run(joined[-1][-1], second):
                joined[-1].append(second)
            else:
                joined.append([second])
        return tuple(_average_run(run) for run in joined)


@dataclass(frozen=True, slots=True)
class VideoActions(display.HtmlResult):
    """Actions of the people in a video, second by second."""

    people: tuple[TrackedPerson, ...]
    """The people, in order of first appearance."""
    video: Mapping[str, Any] | None
    """width, height, fps, frames and duration_s; None if tracks were sent."""
    detail: str | None
    """Detection quality: fast, standard or high; None if tracks were sent."""
    timing: Timing
    model: str
    version: str
    request_id: str
    document: Mapping[str, Any] = field(repr=False)
    """The answer as JSON, which can be sent again as tracks."""
    note: str = ""
    """Warning about the bundle's answers; see `Classification.note`."""

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
                person_cell = f'<span style="color:{colour}">●</span> person {person.person}'
                time_cell = f"{run.start_s:.1f} – {run.end_s:.1f} s"
                rows.append(f"<tr><td>{person_cell}</td><td>{time_cell}</td><td>{escape(label)}</td><td>{best.score:.2f}</td></tr>")
        people_table = display.render_table(rows, ("who", "when", "what", "score")) if rows else "<p>Nobody was found.</p>"
        return people_table + display.render_small_print(self.note)


def actions_request(video: FileLike | None, tracks: Tracks | None, options: ActionsOptions) -> ApiRequest:
    """Return the request for a video or tracks. Raises ValueError unless there is exactly one of them."""
    check_names("actions", options, ActionsOptions)
    if (video is None) == (tracks is None):
        raise ValueError("video, tracks: give one of them")
    parts = {"video": file_bytes("video", video)} if video is not None else {"tracks": _tracks(tracks)}
    return build_request("/v1/actions", options, parts=parts)


def video_actions(answer: Mapping[str, Any]) -> VideoActions:
    """Read the body of `POST /v1/actions`."""
    return VideoActions(
        people=tuple(_person(person) for person in answer["people"]),
        video=answer["video"],
        detail=answer.get("detail"),
        document=answer,
        **common_fields(answer),
    )


def _person(document: Mapping[str, Any]) -> TrackedPerson:
    poses = document.get("poses")
    return TrackedPerson(
        person=document["person"],
        first_s=document["first_s"],
        last_s=document["last_s"],
        boxes=np.array(document["boxes"], np.float64).reshape(-1, 6),
        poses=None if poses is None else np.array([points for _, points in poses], np.float64).reshape(-1, 17, 3),
        actions=tuple(
            Second(one["start_s"], one["end_s"], _labels(one["labels"]), one.get("unsure", False)) for one in document["actions"]
        ),
    )


def _labels(labels: list[Mapping[str, Any]]) -> tuple[Prediction, ...]:
    return tuple(Prediction(label["label"], label["index"], label["score"]) for label in labels)


def _continues_run(before: Second, after: Second) -> bool:
    labels = [second.labels[0].label if second.labels else None for second in (before, after)]
    return labels[0] == labels[1] and before.unsure == after.unsure and before.end_s == after.start_s


def _average_run(run: list[Second]) -> Second:
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
