"""Images → labels that the request brings. The network gives images and texts vectors; the gateway multiplies them (CLIP, arXiv 2103.00020,
section 3.1.4). Images share batches whatever labels they are asked for, and vectors of labels are recalled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from models.bundle import BundleSpec
from models.bundle_schema import MAX_TEMPLATE_CHARS, MAX_TEMPLATES, TextSpec
from server.quoting import quoted
from server.tasks.base import Arrays, FileAnswer, Outputs, Tensor
from server.tasks.capabilities import RecallsTexts
from server.tasks.classify.images import IMAGE, Merging
from server.tasks.embedding import text_jobs as texts
from server.tasks.embedding.base import VectorTask, image_arguments, image_bound, need_tokenizer
from server.tasks.merge_option import MERGED, VALUES, schedule_of
from server.tasks.options import ExcessiveOption, InvalidOption, RequestOptions

DEFAULT_TOP_K = 5
MOST_LABELS = 1000
MOST_TEXTS = 7000
"""Labels × templates."""
LONGEST = MAX_TEMPLATE_CHARS
"""Characters of a label, and of a template."""
PLACEHOLDER = "{}"


class ZeroShotOptions(RequestOptions, frozen=True, kw_only=True):
    label: Annotated[
        list[str],
        Meta(
            description="A label; repeat it. In JSON `labels` is a list.",
            extra={"values": f"1 to {MOST_LABELS:,} distinct texts", "words": "texts"},
        ),
    ] = []  # noqa: RUF012 - msgspec copies it
    template: Annotated[
        list[str] | None,
        Meta(
            description="A sentence that a label is put into, such as `a photo of a {}.`; of several the mean vector counts.",
            extra={"values": "texts with one `{}` each; `{}` alone: labels as they are", "default": "the bundle's", "words": "texts"},
        ),
    ] = None
    top_k: Annotated[
        int | None, Meta(ge=1, description="How many labels.", extra={"values": "1 to the number of labels", "default": str(DEFAULT_TOP_K)})
    ] = None
    merge: Annotated[MERGED, Meta(description="Token merging in images.", extra={"values": VALUES})] = "off"
    threshold: Annotated[
        float | None, Meta(ge=-1, le=1, description="Least cosine of a label that is told.", extra={"default": "none"})
    ] = None


class ZeroShotPlan(msgspec.Struct, frozen=True):
    """`schedule` is r of every block; `vectors` are those of texts that were recalled, as `learned` wrote them."""

    labels: tuple[str, ...]
    templates: tuple[str, ...]
    top_k: int
    rung: str | None
    schedule: tuple[int, ...]
    threshold: float | None
    vectors: dict[str, bytes] = {}

    @property
    def texts(self) -> list[str]:
        """Each label in each template: the templates of the first label first."""
        return [template.replace(PLACEHOLDER, label) for label in self.labels for template in self.templates]


class LabelScore(msgspec.Struct, frozen=True):
    """One label; `score` is its softmax over the given labels (or its sigmoid, where the bundle was trained so)."""

    label: str
    index: int
    score: float
    cosine: float


class ZeroShotResult(msgspec.Struct, frozen=True):
    """The best labels of one image, best first."""

    predictions: list[LabelScore]
    merging: Merging


class LabelCounts(msgspec.Struct, frozen=True):
    """How many labels were given, the vectors of how many were recalled, and how many were too long and lost their end."""

    count: int
    cached: int
    truncated: int


class ZeroShotAnswer(msgspec.Struct, frozen=True):
    results: list[ZeroShotResult]
    """In the order of the images."""
    labels: LabelCounts
    templates: tuple[str, ...]


class ZeroShot(VectorTask[ZeroShotOptions, ZeroShotPlan], RecallsTexts[ZeroShotPlan]):
    """Classify images by labels of your own."""

    name = "zero-shot"
    parts = (IMAGE,)
    options = ZeroShotOptions
    plan_type = ZeroShotPlan
    answer = ZeroShotAnswer
    texts_option = "label"
    example = ZeroShotAnswer(
        [ZeroShotResult([LabelScore("a red car", 0, score=0.93, cosine=0.31)], Merging(None, (0, 0), tokens_in=197, tokens_out=197))],
        LabelCounts(count=2, cached=1, truncated=0),
        ("a photo of a {}.",),
    )

    def can_answer(self, spec: BundleSpec) -> bool:
        """Whether it has a tokenizer."""
        return spec.text is not None

    def plan(self, asked: ZeroShotOptions, spec: BundleSpec) -> ZeroShotPlan:
        need_tokenizer(spec, "label")
        assert spec.text is not None
        labels = _labels(asked.label)
        templates = tuple(spec.text.templates) if asked.template is None else _templates(asked.template)
        if len(labels) * len(templates) > MOST_TEXTS:
            detail = f"{len(labels)} labels in {len(templates)} templates: at most {MOST_TEXTS:,} texts are taken"
            raise ExcessiveOption("label" if asked.template is None else "template", detail)
        top_k = min(DEFAULT_TOP_K, len(labels)) if asked.top_k is None else asked.top_k
        if top_k > len(labels):
            raise InvalidOption("top_k", f"{top_k}: use an integer from 1 to {len(labels)}, the number of labels")
        rung, schedule = schedule_of(str(asked.merge), spec)
        return ZeroShotPlan(labels, templates, top_k, rung, schedule, asked.threshold)

    def texts(self, plan: ZeroShotPlan) -> Sequence[str]:
        return plan.texts

    def with_cached(self, plan: ZeroShotPlan, vectors: Mapping[str, bytes]) -> ZeroShotPlan:
        return msgspec.structs.replace(plan, vectors=dict(vectors))

    def prepare_texts(self, plan: ZeroShotPlan, spec: BundleSpec) -> list[Arrays]:
        missing = [(place, text) for place, text in enumerate(plan.texts) if text not in plan.vectors]
        return texts.packed([text for _, text in missing], [place for place, _ in missing])

    def vectors_to_cache(self, outputs: Sequence[Outputs], plan: ZeroShotPlan) -> dict[str, bytes]:
        written = plan.texts
        return {written[place]: vector.tobytes() + bytes([cut]) for place, (vector, cut) in texts.vectors(outputs).items()}

    def _image_arguments(self, plan: ZeroShotPlan) -> dict[str, Any]:
        return image_arguments(plan.schedule)

    def present(self, outputs: Sequence[Outputs], plan: ZeroShotPlan, spec: BundleSpec, media_type: str) -> ZeroShotAnswer | FileAnswer:
        assert spec.text is not None
        seen = [one for one in outputs if "places" not in one]
        cosines, truncated = _cosines(outputs, seen, plan)
        scores = scores_of(cosines, spec.text)
        results = [_result(*rows, plan) for rows in zip(scores, cosines, seen, strict=True)]
        return ZeroShotAnswer(results, LabelCounts(len(plan.labels), _recalled(plan), truncated), plan.templates)

    def present_in_thread(self, outputs: Sequence[Outputs], plan: ZeroShotPlan) -> bool:
        return len(plan.labels) * len(plan.templates) > texts.FEW

    def result_bound(self, plan: ZeroShotPlan, spec: BundleSpec, arrays: Arrays) -> int:
        """The vectors of a job; those that were recalled are in the plan."""
        return texts.bound(spec, arrays) if "lengths" in arrays else image_bound(spec)

    def tensors(self, spec: BundleSpec) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Texts are asked for without labels, of task embed. A pair without a tokenizer takes none, and scores nothing."""
        inputs, outputs = (Tensor("image", "BYTES", (1,)),), (Tensor("embedding", "FP32", (spec.embedding_dim,)),)
        if spec.text is None:
            return inputs, outputs
        return (*inputs, Tensor("text", "BYTES", (1,))), (*outputs, Tensor("scores", "FP32", (-1,)))

    def to_tensors(self, outputs: Sequence[Outputs], plan: ZeroShotPlan, spec: BundleSpec) -> tuple[Arrays, dict[str, Any]]:
        assert spec.text is not None
        seen = [one for one in outputs if "places" not in one]
        cosines, truncated = _cosines(outputs, seen, plan)
        return {"embedding": np.stack([one["embedding"] for one in seen]), "scores": scores_of(cosines, spec.text)}, {
            "truncated": truncated
        }


def _labels(given: Sequence[str]) -> tuple[str, ...]:
    """The labels without spaces around them. Raises InvalidOption."""
    if not given:
        raise InvalidOption("label", f"missing: send 1 to {MOST_LABELS:,} labels, as `label` fields or the JSON list `labels`")
    if len(given) > MOST_LABELS:
        raise ExcessiveOption("label", f"{len(given):,} labels: at most {MOST_LABELS:,} are taken")
    labels = tuple(label.strip() for label in given)
    places: dict[str, int] = {}
    for index, label in enumerate(labels):
        _check_length(label, f"label[{index}]")
        if label in places:
            raise InvalidOption(f"label[{index}]", f"{quoted(label)} is given twice: it is label[{places[label]}], too")
        places[label] = index
    return labels


def _templates(given: Sequence[str]) -> tuple[str, ...]:
    """Raises InvalidOption."""
    if not given:
        raise InvalidOption("template", "an empty list: leave it out for the bundle's own, or send `{}` for labels as they are")
    if len(given) > MAX_TEMPLATES:
        raise ExcessiveOption("template", f"{len(given)} templates: at most {MAX_TEMPLATES} are taken")
    for index, template in enumerate(given):
        _check_length(template, f"template[{index}]")
        if template.count(PLACEHOLDER) != 1:
            raise InvalidOption(f"template[{index}]", f"{quoted(template)} must hold `{{}}` once, where the label goes")
    return tuple(given)


def _check_length(text: str, field: str) -> None:
    if not text:
        raise InvalidOption(field, "empty: send at least one character that is no space")
    if len(text) > LONGEST:
        raise ExcessiveOption(field, f"{len(text):,} characters: at most {LONGEST} are taken")


def _cosines(outputs: Sequence[Outputs], seen: Sequence[Outputs], plan: ZeroShotPlan) -> tuple[NDArray[np.float32], int]:
    """Return the cosines, (images, labels), and how many labels lost their end."""
    images = np.stack([one["embedding"] for one in seen])  # (B, C)
    computed = texts.vectors(outputs)
    written = plan.texts
    rows, cut = np.empty((len(written), images.shape[1]), np.float32), set[int]()  # (labels × templates, C)
    for place, text in enumerate(written):
        known = plan.vectors.get(text)
        rows[place], truncated = computed[place] if known is None else (np.frombuffer(known, np.float32, images.shape[1]), known[-1])
        if truncated:
            cut.add(place // len(plan.templates))
    classes = rows.reshape(len(plan.labels), len(plan.templates), -1).mean(axis=1)  # (labels, C)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    cosines: NDArray[np.float32] = images @ classes.T
    return cosines, len(cut)


def scores_of(cosines: NDArray[np.float32], text: TextSpec) -> NDArray[np.float32]:
    """(images, labels) of the same. Scale and bias are those that the pair was trained with."""
    logits = cosines.astype(np.float64) * text.scale + text.bias
    if text.scores == "sigmoid":
        logs = -np.logaddexp(0, -logits)
    else:
        logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return np.exp(logs).astype(np.float32)


def _result(scores: NDArray[np.float32], cosines: NDArray[np.float32], one: Outputs, plan: ZeroShotPlan) -> ZeroShotResult:
    best = (-cosines).argsort(kind="stable")[: plan.top_k].tolist()  # far from each other, many have the score 0 or 1
    least = -np.inf if plan.threshold is None else plan.threshold
    predictions = [
        LabelScore(plan.labels[index], index, float(scores[index]), float(cosines[index])) for index in best if cosines[index] >= least
    ]
    tokens_in, tokens_out = one["tokens"].tolist()
    return ZeroShotResult(predictions, Merging(plan.rung, plan.schedule, tokens_in, tokens_out))


def _recalled(plan: ZeroShotPlan) -> int:
    """Labels of which no text had to be read."""
    each = len(plan.templates)
    written = plan.texts
    return sum(all(text in plan.vectors for text in written[place : place + each]) for place in range(0, len(written), each))
