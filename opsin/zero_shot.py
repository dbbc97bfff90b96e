"""Zero-shot classification for the client: what can be asked, the requests, and their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, TypedDict

from opsin import display
from opsin.api_request import Call, call_of, check_names, check_texts
from opsin.classification import Pictures, Priority, several
from opsin.image_encoding import Picture, encoded
from opsin.request_chunks import FRAMING, Chunk, Limits, image_chunks
from opsin.results import Merging, Timing, fields_of, merging_of, timing_of

TASKS = ("zero-shot",)
"""Tasks of the bundles that answer."""


class ZeroShotOptions(TypedDict, total=False):
    """Options that are left out or None have the service's defaults."""

    model: str | None
    """`name` or `name@version`."""
    templates: Sequence[str] | None
    """Sentences with one `{}` each, where the label goes; `["{}"]`: labels as they are; None: the bundle's own."""
    top_k: int | None
    merge: int | str | None
    """`"off"`, how many tokens to merge in each block, or the name of a rung of the bundle's ladder."""
    threshold: float | None
    """The least cosine of a label that is told."""
    priority: Priority | None
    timeout: float | None
    """Seconds for this call, retries included, in place of the client's; for each request where it takes several."""
    request_id: str | None
    """Under which the service's logs speak of this request."""


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label of one image; `index` is its place among the labels that were given."""

    label: str
    index: int
    score: float
    """Softmax over the labels, or the sigmoid where the bundle was trained so."""
    cosine: float
    """Cosine of the image's vector and the label's."""


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """The labels of a request."""

    count: int
    cached: int
    """Number of labels whose vectors the service knew already."""
    truncated: int
    """Number of labels that were too long for the bundle and lost their end."""


@dataclass(frozen=True, slots=True)
class ZeroShotClassification:
    """The labels that fit one image best, best first, and how they came about."""

    predictions: tuple[LabelScore, ...]
    """Empty where no label reaches the threshold."""
    merging: Merging | None
    """None for models without tokens."""
    labels: LabelCounts
    templates: tuple[str, ...]
    """Sentences that the labels were put into."""
    timing: Timing
    """Times of the whole request, shared by all its images."""
    model: str
    version: str
    request_id: str
    note: str = ""
    """As `Classification.note`."""

    @property
    def label(self) -> str | None:
        """The best label; None where none reaches the threshold."""
        return self.predictions[0].label if self.predictions else None

    @property
    def score(self) -> float | None:
        """Score of the best label; None where none reaches the threshold."""
        return self.predictions[0].score if self.predictions else None

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><td>{escape(found.label)}</td><td>{display.bar(found.score, display.COLOURS[2])}</td>"
            f"<td>{found.score:.1%}</td><td>{found.cosine:.3f}</td></tr>"
            for found in self.predictions
        )
        best = f"{len(self.predictions)} of {self.labels.count} labels"
        facts = f"{best}, {self.model}@{self.version}, {self.timing.total_ms:.0f} ms"
        return display.table(rows, ("label", "", "score", "cosine")) + display.line(facts, self.note)

    def show(self) -> Path | None:
        """Show it in the notebook or the browser: see `opsin.display.show`."""
        return display.show(self)


def zero_shot_call(images: Picture | Pictures, labels: Sequence[str], asked: ZeroShotOptions) -> Call:
    """One request for all images. Raises TypeError, ValueError or OSError for what cannot be sent."""
    pictures = tuple(encoded(picture) for picture in _listed(images))
    return replace(_empty_call(labels, asked), pictures=pictures)


def zero_shot_chunks(images: Picture | Pictures, labels: Sequence[str], asked: ZeroShotOptions, limits: Limits) -> Iterator[Chunk]:
    """Requests within the limits that bring all images, each with all labels. Raises as `zero_shot_call` does."""
    empty = _empty_call(labels, asked)
    texts = sum(len(text.encode()) + FRAMING for values in empty.form.values() for text in values)
    return image_chunks(_listed(images), Limits(limits.count, limits.nbytes - texts), lambda pictures: replace(empty, pictures=pictures))


def reader(images: Picture | Pictures) -> Callable[[Mapping[str, Any]], Any]:
    """Return the function that reads the body of an answer: to one result for one image, to a list for several."""
    if several(images):
        return zero_shots
    return lambda answer: zero_shots(answer)[0]


def zero_shots(answer: Mapping[str, Any]) -> list[ZeroShotClassification]:
    """Read the body of `POST /v1/zero-shot`: one entry for each image in the order in which they were sent."""
    timing, counts = timing_of(answer), LabelCounts(**fields_of(LabelCounts, answer["labels"]))
    return [
        ZeroShotClassification(
            predictions=tuple(LabelScore(**fields_of(LabelScore, found)) for found in result["predictions"]),
            merging=merging_of(result),
            labels=counts,
            templates=tuple(answer["templates"]),
            timing=timing,
            model=answer["model"],
            version=answer["version"],
            request_id=answer["id"],
            note=answer.get("note", ""),
        )
        for result in answer["results"]
    ]


def _listed(images: Picture | Pictures) -> Any:
    pictures = images if several(images) else [images]
    if not len(pictures):  # type: ignore[arg-type]
        raise ValueError("images: at least one image is needed")
    return pictures


def _empty_call(labels: Sequence[str], asked: ZeroShotOptions) -> Call:
    check_names("zero_shot", asked, ZeroShotOptions)
    options: dict[str, Any] = dict(asked)
    templates, form = options.pop("templates", None), {"label": _texts("labels", labels)}
    if templates is not None:
        form["template"] = _texts("templates", templates)
    return call_of("/v1/zero-shot", options, form=form)


def _texts(name: str, given: Sequence[str]) -> tuple[str, ...]:
    """Raises TypeError for a text in place of a list, ValueError for an empty list."""
    if isinstance(given, str):
        raise TypeError(f"{name}: a list of texts, such as [{given!r}], not one text")
    if not (texts := tuple(given)):
        raise ValueError(f"{name}: at least one is needed")
    check_texts(name, texts)
    return texts
