"""Zero-shot classification for the client: the options, the requests, and their answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from opsin import display
from opsin.api_request import ApiRequest, CallOptions, build_request, check_names, check_texts
from opsin.classification import ImageSequence, as_list
from opsin.image_encoding import ImageLike, encode
from opsin.request_chunks import MAX_PART_OVERHEAD_BYTES, Chunk, RequestLimits, image_chunks
from opsin.results import Merging, Timing, common_fields, fields_of, merging_of

TASKS = ("zero-shot",)
"""Tasks of the bundles that score labels."""


class ZeroShotOptions(CallOptions, total=False):
    """Options of a zero-shot request; None is the service's default."""

    model: str | None
    """`name` or `name@version`."""
    templates: Sequence[str] | None
    """Sentences with one `{}` each for the label; `["{}"]`: labels as they are; None: the bundle's templates."""
    top_k: int | None
    merge: int | str | None
    """`"off"`, the number of tokens to merge in each block, or the name of a rung of the bundle's ladder."""
    threshold: float | None
    """Minimum cosine of the labels to return."""


@dataclass(frozen=True, slots=True)
class LabelScore:
    """Score of one label for one image; `index` is the label's index in the request."""

    label: str
    index: int
    score: float
    """Softmax over the labels, or the sigmoid if the bundle was trained with it."""
    cosine: float
    """Cosine similarity of the image's vector and the label's."""


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Counts of the labels of a request."""

    count: int
    cached: int
    """Number of labels whose vectors were in the service's cache."""
    truncated: int
    """Number of labels that were too long for the bundle and were cut."""


@dataclass(frozen=True, slots=True)
class ZeroShotClassification(display.HtmlResult):
    """The labels that fit one image best, best first, and how they were computed."""

    predictions: tuple[LabelScore, ...]
    """The labels and their scores; empty if no label reaches the threshold."""
    merging: Merging | None
    """None for models without tokens."""
    labels: LabelCounts
    templates: tuple[str, ...]
    """Sentences that the labels were inserted into."""
    timing: Timing
    """Times of the whole request, shared by all its images."""
    model: str
    version: str
    request_id: str
    note: str = ""
    """Warning about the bundle's answers; see `Classification.note`."""

    @property
    def label(self) -> str | None:
        """The best label; None if none reaches the threshold."""
        return self.predictions[0].label if self.predictions else None

    @property
    def score(self) -> float | None:
        """Score of the best label; None if none reaches the threshold."""
        return self.predictions[0].score if self.predictions else None

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><td>{escape(found.label)}</td><td>{display.render_bar(found.score, display.COLOURS[2])}</td>"
            f"<td>{found.score:.1%}</td><td>{found.cosine:.3f}</td></tr>"
            for found in self.predictions
        )
        best = f"{len(self.predictions)} of {self.labels.count} labels"
        facts = f"{best}, {self.model}@{self.version}, {self.timing.total_ms:.0f} ms"
        return display.render_table(rows, ("label", "", "score", "cosine")) + display.render_small_print(facts, self.note)


def zero_shot_request(images: ImageLike | ImageSequence, labels: Sequence[str], options: ZeroShotOptions) -> ApiRequest:
    """Return one request for all images. Raises TypeError, ValueError or OSError for inputs that cannot be sent."""
    encoded = tuple(encode(picture) for picture in as_list(images))
    return replace(_empty_request(labels, options), images=encoded)


def zero_shot_chunks(
    images: ImageLike | ImageSequence, labels: Sequence[str], options: ZeroShotOptions, limits: RequestLimits
) -> Iterator[Chunk]:
    """Yield requests within the limits for all images, each with all labels. Raises as `zero_shot_request` does."""
    empty = _empty_request(labels, options)
    texts = sum(len(text.encode()) + MAX_PART_OVERHEAD_BYTES for values in empty.form.values() for text in values)
    return image_chunks(as_list(images), RequestLimits(limits.count, limits.nbytes - texts), lambda encoded: replace(empty, images=encoded))


def zero_shots(answer: Mapping[str, Any]) -> list[ZeroShotClassification]:
    """Read the body of `POST /v1/zero-shot`: one entry for each image, in the order of the request."""
    common, counts = common_fields(answer), LabelCounts(**fields_of(LabelCounts, answer["labels"]))
    return [
        ZeroShotClassification(
            predictions=tuple(LabelScore(**fields_of(LabelScore, found)) for found in result["predictions"]),
            merging=merging_of(result),
            labels=counts,
            templates=tuple(answer["templates"]),
            **common,
        )
        for result in answer["results"]
    ]


def _empty_request(labels: Sequence[str], options: ZeroShotOptions) -> ApiRequest:
    check_names("zero_shot", options, ZeroShotOptions)
    form_options: dict[str, Any] = dict(options)
    templates, form = form_options.pop("templates", None), {"label": _texts("labels", labels)}
    if templates is not None:
        form["template"] = _texts("templates", templates)
    return build_request("/v1/zero-shot", form_options, form=form)


def _texts(name: str, texts_given: Sequence[str]) -> tuple[str, ...]:
    """Check a list of texts. Raises TypeError for a text instead of a list, ValueError for an empty list."""
    if isinstance(texts_given, str):
        raise TypeError(f"{name}: a list of texts, such as [{texts_given!r}], not one text")
    if not (texts := tuple(texts_given)):
        raise ValueError(f"{name}: at least one is needed")
    check_texts(name, texts)
    return texts
