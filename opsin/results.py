"""Answers of the service as frozen dataclasses. Fields that a newer service adds are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from opsin import display


@dataclass(frozen=True, slots=True)
class Prediction:
    """One label. `score` is its softmax probability, or its sigmoid if labels do not exclude each other; `index` is the class number."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Merging:
    """Token merging of one image. Counts include special tokens."""

    rung: str | None
    """The ladder's rung; None if the request named another schedule."""
    schedule: object
    """The merge schedule: an integer, a list with one entry for each block, or `{"r": …, "inflection": …}`."""
    tokens_in: int
    tokens_out: int
    schedule_sight: object = None
    """Merge schedule of the video half, if the request named one."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Duration of each phase of a request in milliseconds; of its slowest image if it held several."""

    prepare_ms: float
    queue_ms: float
    batch_wait_ms: float
    inference_ms: float
    total_ms: float
    batch_size: int
    """Number of images in the batch that the worker ran, including those of other requests."""


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """Sampling of a video: the frames that were classified."""

    frames: int
    """Number of frames of each view."""
    views: int
    """Number of views in time."""
    crops: int
    """Number of crops of each view."""
    duration_s: float
    """Duration of the part that the views are spread over."""

    def __str__(self) -> str:
        crops = "" if self.crops == 1 else f" × {self.crops} crops"
        return f"{_count(self.views, 'view')}{crops} of {_count(self.frames, 'frame')}, {self.duration_s:g} s"


@dataclass(frozen=True, slots=True)
class SoundFacts:
    """Sampling of a sound: the windows that were classified."""

    seconds: float
    """Length of the sound that was classified."""
    windows: int
    sample_rate: int
    """Samples per second, after resampling."""

    def __str__(self) -> str:
        return f"{_count(self.windows, 'window')} of sound, {self.seconds:g} s at {self.sample_rate / 1000:g} kHz"


@dataclass(frozen=True, slots=True)
class ViewScores:
    """The labels of one view of a clip, or of one window of sound."""

    start_s: float
    """Time of the view's first frame, or of the window's start."""
    end_s: float
    predictions: tuple[Prediction, ...]
    """Best labels of the view, and those that are best on average, best first."""


@dataclass(frozen=True, slots=True)
class Classification(display.HtmlResult):
    """The labels of one image, clip or sound, best first, and how they were computed."""

    predictions: tuple[Prediction, ...]
    merging: Merging | None
    """None for models without tokens."""
    timing: Timing
    """Timing of the whole request, shared by all its images."""
    model: str
    version: str
    request_id: str
    clip: ClipFacts | None = None
    """None if no video was sent, or the bundle did not use it."""
    sound: SoundFacts | None = None
    """None if no sound was used."""
    timeline: tuple[ViewScores, ...] | None = None
    """The views or windows, in order of time; None if not requested."""
    note: str = ""
    """Warning of the bundle about its answers, such as that it knows drawings alone; empty if it has none."""

    @property
    def label(self) -> str:
        return self.predictions[0].label

    @property
    def score(self) -> float:
        return self.predictions[0].score

    @property
    def looked_at(self) -> str:
        """The views and windows that the labels are based on, as a text; empty for an image."""
        return "; ".join(str(facts) for facts in (self.clip, self.sound) if facts is not None)

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><td>{escape(one.label)}</td><td>{display.render_bar(one.score, display.COLOURS[2])}</td><td>{one.score:.1%}</td></tr>"
            for one in self.predictions
        )
        merged = f"{self.merging.tokens_out} of {self.merging.tokens_in} tokens, " if self.merging else ""
        looked_at = f"{self.looked_at}, " if self.looked_at else ""
        return display.render_table(rows) + display.render_small_print(
            f"{self.model}@{self.version}, {looked_at}{merged}{self.timing.total_ms:.0f} ms", self.note
        )


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle of the service; `details` holds everything that the service reports about it."""

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
        """The `POST /v1/<route>` that runs it; None if no route does. It is the bundle's task, except for networks that classify clips."""
        route: str | None = self.details.get("route", self.task)
        return route

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle's description and, through it, of its files. Vectors are comparable if their digests are equal."""
        return str(self.details["digest"])

    @property
    def comparison(self) -> Mapping[str, Any] | None:
        """Result of `opsin compare`: `images`, and in `results` for each `format` and `merging` the `max_difference` from the original
        code's logits and the number of `same_labels`. None if it was not run, or the service is older than it."""
        comparison: Mapping[str, Any] | None = self.details.get("comparison")
        return comparison

    @property
    def note(self) -> str:
        """Warning of the bundle about its answers, such as that it knows drawings alone; empty if it has none."""
        return str(self.details.get("note", ""))


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the service can take requests now, and if not, why. Can be used as a condition: `if client.ready(): …`."""

    ready: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ready


def classifications(answer: Mapping[str, Any]) -> list[Classification]:
    """Read the body of `POST /v1/classify`: one entry for each image, in the order of the request, or one for a clip or sound."""
    common = common_fields(answer)
    return [
        Classification(
            predictions=_predictions(result),
            merging=merging_of(result),
            clip=ClipFacts(**fields_of(ClipFacts, result["clip"])) if result.get("clip") else None,
            sound=SoundFacts(**fields_of(SoundFacts, result["sound"])) if result.get("sound") else None,
            timeline=tuple(_view(view) for view in result["timeline"]) if "timeline" in result else None,
            **common,
        )
        for result in answer["results"]
    ]


def _predictions(result: Mapping[str, Any]) -> tuple[Prediction, ...]:
    return tuple(Prediction(**fields_of(Prediction, prediction)) for prediction in result["predictions"])


def _view(view: Mapping[str, Any]) -> ViewScores:
    return ViewScores(view["start_s"], view["end_s"], _predictions(view))


def merging_of(result: Mapping[str, Any]) -> Merging | None:
    """Read the token merging of one result."""
    return None if result["merging"] is None else Merging(**fields_of(Merging, {"schedule_sight": None} | result["merging"]))


def common_fields(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields that the results of all tasks have."""
    return {
        "timing": Timing(**fields_of(Timing, answer["timing"])),
        "model": answer["model"],
        "version": answer["version"],
        "request_id": answer["id"],
        "note": answer.get("note", ""),
    }


def model(entry: Mapping[str, Any]) -> Model:
    return Model(**fields_of(Model, {**entry, "details": entry}))


def models(answer: Mapping[str, Any]) -> list[Model]:
    """Read the body of `GET /v1/models`."""
    return [model(entry) for entry in answer["models"]]


def fields_of(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a dataclass's fields, without others that the answer has."""
    return {name: values[name] for name in kind.__dataclass_fields__}


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
