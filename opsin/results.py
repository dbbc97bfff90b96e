"""Answers of the service as frozen dataclasses. Fields that a newer service adds are passed over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from opsin import display


@dataclass(frozen=True, slots=True)
class Prediction:
    """One label; `score` is its softmax probability, or its sigmoid where labels do not exclude each other, `index` the class number."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Merging:
    """How the picture's tokens were merged on their way through the network. Counts include special tokens."""

    rung: str | None
    """The ladder's rung, None where the request named a schedule of its own."""
    schedule: object
    """As the service reports it: an integer, a list with one entry a block, or `{"r": …, "inflection": …}`."""
    tokens_in: int
    tokens_out: int
    schedule_sight: object = None
    """Merge schedule of the video half, where it was asked for by itself."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a request went, in milliseconds; of its slowest picture if it held several."""

    prepare_ms: float
    queue_ms: float
    batch_wait_ms: float
    inference_ms: float
    total_ms: float
    batch_size: int
    """Pictures in the batch that the worker ran, those of other requests included."""


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """How a video was looked at."""

    frames: int
    """Frames of each view."""
    views: int
    """Views in time."""
    crops: int
    """Crops of each view."""
    duration_s: float
    """Seconds of the part that the views are spread over."""

    def __str__(self) -> str:
        crops = "" if self.crops == 1 else f" × {self.crops} crops"
        return f"{_counted(self.views, 'view')}{crops} of {_counted(self.frames, 'frame')}, {self.duration_s:g} s"


@dataclass(frozen=True, slots=True)
class SoundFacts:
    """How sound was heard."""

    seconds: float
    """Length of the sound that was heard."""
    windows: int
    sample_rate: int
    """Samples a second, after resampling."""

    def __str__(self) -> str:
        return f"{_counted(self.windows, 'window')} of sound, {self.seconds:g} s at {self.sample_rate / 1000:g} kHz"


@dataclass(frozen=True, slots=True)
class ViewScores:
    """The labels of one view of a clip, or of one window of sound."""

    start_s: float
    """Second of its first frame, or at which the window begins."""
    end_s: float
    predictions: tuple[Prediction, ...]
    """Its best labels and those that are best in the mean, best first."""


@dataclass(frozen=True, slots=True)
class Classification:
    """The labels of one picture, clip or sound, best first, and how they came about."""

    predictions: tuple[Prediction, ...]
    merging: Merging | None
    """None for models without tokens."""
    timing: Timing
    """Timing of the whole request, shared by all its images."""
    model: str
    version: str
    request_id: str
    clip: ClipFacts | None = None
    """None where no video was sent, or the bundle did not look at it."""
    sound: SoundFacts | None = None
    """None where no sound was heard."""
    timeline: tuple[ViewScores, ...] | None = None
    """The views or windows one by one, in the order of time; None if not asked for."""
    note: str = ""
    """Warning of the bundle about its answers, such as that it knows drawings alone; empty where it has none."""

    @property
    def label(self) -> str:
        return self.predictions[0].label

    @property
    def score(self) -> float:
        return self.predictions[0].score

    @property
    def looked_at(self) -> str:
        """The part of a clip and of a sound that the labels are of, as a text; empty for an image."""
        return "; ".join(str(facts) for facts in (self.clip, self.sound) if facts is not None)

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><td>{escape(found.label)}</td><td>{display.bar(found.score, display.COLOURS[2])}</td><td>{found.score:.1%}</td></tr>"
            for found in self.predictions
        )
        merged = f"{self.merging.tokens_out} of {self.merging.tokens_in} tokens, " if self.merging else ""
        looked_at = f"{self.looked_at}, " if self.looked_at else ""
        return display.table(rows) + display.line(
            f"{self.model}@{self.version}, {looked_at}{merged}{self.timing.total_ms:.0f} ms", self.note
        )

    def show(self) -> Path | None:
        """Show it in the notebook or the browser: see `opsin.display.show`."""
        return display.show(self)


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle that the service knows; `details` holds everything that it says of it."""

    name: str
    version: str
    task: str
    state: str
    details: Mapping[str, Any]

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def route(self) -> str | None:
        """`POST /v1/<route>` answers with it, None where no route does: that of its task, but for networks that label whole clips."""
        route: str | None = self.details.get("route", self.task)
        return route

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle's description and, through it, of its files: what vectors may be compared by."""
        return str(self.details["digest"])

    @property
    def comparison(self) -> Mapping[str, Any] | None:
        """Result of `opsin compare`: `images`, and in `results` for each `format` and `merging` the `max_difference` from the original
        code's logits and the number of `same_labels`. None where it was not run, or the service is of a version before it."""
        comparison: Mapping[str, Any] | None = self.details.get("comparison")
        return comparison

    @property
    def note(self) -> str:
        """Warning of the bundle about its answers, such as that it knows drawings alone; empty where it has none."""
        return str(self.details.get("note", ""))


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the service can take requests now, and if not, why. True or false by itself: `if client.ready(): …`."""

    ready: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ready


def classifications(answer: Mapping[str, Any]) -> list[Classification]:
    """The body of `POST /v1/classify`, one entry a picture in the order in which they were sent, or one of a clip or sound."""
    timing = timing_of(answer)
    return [
        Classification(
            predictions=_predictions(result),
            merging=merging_of(result),
            timing=timing,
            model=answer["model"],
            version=answer["version"],
            request_id=answer["id"],
            clip=ClipFacts(**fields_of(ClipFacts, result["clip"])) if result.get("clip") else None,
            sound=SoundFacts(**fields_of(SoundFacts, result["sound"])) if result.get("sound") else None,
            timeline=tuple(_view(view) for view in result["timeline"]) if "timeline" in result else None,
            note=answer.get("note", ""),
        )
        for result in answer["results"]
    ]


def _predictions(result: Mapping[str, Any]) -> tuple[Prediction, ...]:
    return tuple(Prediction(**fields_of(Prediction, prediction)) for prediction in result["predictions"])


def _view(view: Mapping[str, Any]) -> ViewScores:
    return ViewScores(view["start_s"], view["end_s"], _predictions(view))


def merging_of(result: Mapping[str, Any]) -> Merging | None:
    """Return what the result of one image says of its tokens."""
    return None if result["merging"] is None else Merging(**fields_of(Merging, {"schedule_sight": None} | result["merging"]))


def timing_of(answer: Mapping[str, Any]) -> Timing:
    return Timing(**fields_of(Timing, answer["timing"]))


def model(entry: Mapping[str, Any]) -> Model:
    return Model(**fields_of(Model, {**entry, "details": entry}))


def models(answer: Mapping[str, Any]) -> list[Model]:
    """The body of `GET /v1/models`."""
    return [model(entry) for entry in answer["models"]]


def fields_of(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass from an answer's, without those that it does not have."""
    return {name: values[name] for name in kind.__dataclass_fields__}


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
