"""Images → labels from the request. The network turns images and texts into vectors, which the gateway multiplies (CLIP, arXiv 2103.00020,
section 3.1.4). Images share batches whatever their labels, and vectors of labels are cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from models.bundle import BundleSpec
from models.bundle_schema import MAX_TEMPLATE_CHARS, MAX_TEMPLATES, TextSpec
from server.quote import quote
from server.tasks.base import Arrays, FileAnswer, Outputs, RecallsTexts, Tensor
from server.tasks.classify.images import IMAGE, Merging
from server.tasks.embedding import vector_jobs
from server.tasks.embedding.vector_jobs import VectorTask, image_arguments, image_bound, need_tokenizer
from server.tasks.options import MERGED, VALUES, ExcessiveOption, InvalidOption, RequestOptions, schedule_of

DEFAULT_TOP_K = 5
MAX_LABELS = 1000
MAX_PROMPTS = 7000
"""Maximum number of labels times templates."""
MAX_LABEL_CHARS = MAX_TEMPLATE_CHARS
"""Maximum length of a label, and of a template."""
PLACEHOLDER = "{}"


class ZeroShotOptions(RequestOptions, frozen=True, kw_only=True):
    label: Annotated[
        list[str],
        Meta(
            description="A label; repeat it. In JSON `labels` is a list.",
            extra={"values": f"1 to {MAX_LABELS:,} distinct texts", "words": "texts"},
        ),
    ] = []  # noqa: RUF012 - msgspec copies it
    template: Annotated[
        list[str] | None,
        Meta(
            description="A sentence with a placeholder for the label, such as `a photo of a {}.`; several are averaged.",
            extra={"values": "texts with one `{}` each; `{}` alone: labels as they are", "default": "the bundle's", "words": "texts"},
        ),
    ] = None
    top_k: Annotated[
        int | None,
        Meta(ge=1, description="Number of labels.", extra={"values": "1 to the number of labels", "default": str(DEFAULT_TOP_K)}),
    ] = None
    merge: Annotated[MERGED, Meta(description="Token merging in images.", extra={"values": VALUES})] = "off"
    threshold: Annotated[
        float | None, Meta(ge=-1, le=1, description="Minimum cosine of a label in the response.", extra={"default": "none"})
    ] = None


class ZeroShotPlan(msgspec.Struct, frozen=True):
    """`schedule` is r of every block; `vectors` are cached ones of texts, as `vectors_to_cache` wrote them."""

    labels: tuple[str, ...]
    templates: tuple[str, ...]
    top_k: int
    rung: str | None
    schedule: tuple[int, ...]
    threshold: float | None
    vectors: dict[str, bytes] = {}

    @property
    def texts(self) -> list[str]:
        """All labels in all templates: the templates of the first label first."""
        return [template.replace(PLACEHOLDER, label) for label in self.labels for template in self.templates]


class LabelScore(msgspec.Struct, frozen=True):
    """One label; `score` is its softmax over the given labels (or its sigmoid, if the bundle was trained so)."""

    label: str
    index: int
    score: float
    cosine: float


class ZeroShotResult(msgspec.Struct, frozen=True):
    """The best labels of one image, best first."""

    predictions: list[LabelScore]
    merging: Merging


class LabelCounts(msgspec.Struct, frozen=True):
    """Numbers of labels: all, those with cached vectors, and those that were too long and lost their end."""

    count: int
    cached: int
    truncated: int


class ZeroShotAnswer(msgspec.Struct, frozen=True):
    results: list[ZeroShotResult]
    """Results in the order of the images."""
    labels: LabelCounts
    templates: tuple[str, ...]


class ZeroShotTask(VectorTask[ZeroShotOptions, ZeroShotPlan], RecallsTexts[ZeroShotPlan]):
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
        """Return whether the bundle has a tokenizer."""
        return spec.text is not None

    def plan(self, options: ZeroShotOptions, spec: BundleSpec) -> ZeroShotPlan:
        need_tokenizer(spec, "label")
        assert spec.text is not None
        labels = _labels(options.label)
        templates = tuple(spec.text.templates) if options.template is None else _templates(options.template)
        if len(labels) * len(templates) > MAX_PROMPTS:
            detail = f"{len(labels)} labels in {len(templates)} templates: at most {MAX_PROMPTS:,} texts are accepted"
            raise ExcessiveOption("label" if options.template is None else "template", detail)
        top_k = min(DEFAULT_TOP_K, len(labels)) if options.top_k is None else options.top_k
        if top_k > len(labels):
            raise InvalidOption("top_k", f"{top_k}: use an integer from 1 to {len(labels)}, the number of labels")
        rung, schedule = schedule_of(str(options.merge), spec)
        return ZeroShotPlan(labels, templates, top_k, rung, schedule, options.threshold)

    def texts(self, plan: ZeroShotPlan) -> Sequence[str]:
        return plan.texts

    def with_cached(self, plan: ZeroShotPlan, vectors: Mapping[str, bytes]) -> ZeroShotPlan:
        return msgspec.structs.replace(plan, vectors=dict(vectors))

    def prepare_texts(self, plan: ZeroShotPlan, spec: BundleSpec) -> list[Arrays]:
        missing = [(place, text) for place, text in enumerate(plan.texts) if text not in plan.vectors]
        return vector_jobs.pack_texts([text for _, text in missing], [place for place, _ in missing])

    def vectors_to_cache(self, outputs: Sequence[Outputs], plan: ZeroShotPlan) -> dict[str, bytes]:
        written = plan.texts
        return {written[place]: vector.tobytes() + bytes([cut]) for place, (vector, cut) in vector_jobs.vectors(outputs).items()}

    def _image_arguments(self, plan: ZeroShotPlan) -> dict[str, Any]:
        return image_arguments(plan.schedule)

    def present(self, outputs: Sequence[Outputs], plan: ZeroShotPlan, spec: BundleSpec, media_type: str) -> ZeroShotAnswer | FileAnswer:
        assert spec.text is not None
        seen = [one for one in outputs if "places" not in one]
        cosines, truncated = _cosines(outputs, seen, plan)
        scores = to_scores(cosines, spec.text)
        results = [_result(*rows, plan) for rows in zip(scores, cosines, seen, strict=True)]
        return ZeroShotAnswer(results, LabelCounts(len(plan.labels), _count_cached(plan), truncated), plan.templates)

    def present_in_thread(self, outputs: Sequence[Outputs], plan: ZeroShotPlan) -> bool:
        return len(plan.labels) * len(plan.templates) > vector_jobs.MAX_INLINE_TEXTS

    def result_bound(self, plan: ZeroShotPlan, spec: BundleSpec, arrays: Arrays) -> int:
        """Bound the vectors of a job; cached ones are in the plan."""
        return vector_jobs.bound(spec, arrays) if "lengths" in arrays else image_bound(spec)

    def tensors(self, spec: BundleSpec) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the tensors. Texts without images are for task embed. A pair without a tokenizer takes none, and scores nothing."""
        inputs, outputs = (Tensor("image", "BYTES", (1,)),), (Tensor("embedding", "FP32", (spec.embedding_dim,)),)
        if spec.text is None:
            return inputs, outputs
        return (*inputs, Tensor("text", "BYTES", (1,))), (*outputs, Tensor("scores", "FP32", (-1,)))

    def to_tensors(self, outputs: Sequence[Outputs], plan: ZeroShotPlan, spec: BundleSpec) -> tuple[Arrays, dict[str, Any]]:
        assert spec.text is not None
        seen = [one for one in outputs if "places" not in one]
        cosines, truncated = _cosines(outputs, seen, plan)
        return {"embedding": np.stack([one["embedding"] for one in seen]), "scores": to_scores(cosines, spec.text)}, {
            "truncated": truncated
        }


def _labels(values: Sequence[str]) -> tuple[str, ...]:
    """Return the labels without surrounding spaces. Raises InvalidOption."""
    if not values:
        raise InvalidOption("label", f"missing: send 1 to {MAX_LABELS:,} labels, as `label` fields or the JSON list `labels`")
    if len(values) > MAX_LABELS:
        raise ExcessiveOption("label", f"{len(values):,} labels: at most {MAX_LABELS:,} are accepted")
    labels = tuple(label.strip() for label in values)
    places: dict[str, int] = {}
    for index, label in enumerate(labels):
        _check_length(label, f"label[{index}]")
        if label in places:
            raise InvalidOption(f"label[{index}]", f"{quote(label)} is given twice: it is label[{places[label]}], too")
        places[label] = index
    return labels


def _templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates. Raises InvalidOption."""
    if not templates:
        raise InvalidOption("template", "an empty list: leave it out for the bundle's own, or send `{}` for labels as they are")
    if len(templates) > MAX_TEMPLATES:
        raise ExcessiveOption("template", f"{len(templates)} templates: at most {MAX_TEMPLATES} are accepted")
    for index, template in enumerate(templates):
        _check_length(template, f"template[{index}]")
        if template.count(PLACEHOLDER) != 1:
            raise InvalidOption(f"template[{index}]", f"{quote(template)} must contain `{{}}` once, as the placeholder for the label")
    return tuple(templates)


def _check_length(text: str, field: str) -> None:
    if not text:
        raise InvalidOption(field, "empty: send at least one character other than a space")
    if len(text) > MAX_LABEL_CHARS:
        raise ExcessiveOption(field, f"{len(text):,} characters: at most {MAX_LABEL_CHARS} are accepted")


def _cosines(outputs: Sequence[Outputs], seen: Sequence[Outputs], plan: ZeroShotPlan) -> tuple[NDArray[np.float32], int]:
    """Return the cosines, (images, labels), and the number of labels that lost their end."""
    images = np.stack([one["embedding"] for one in seen])  # (B, C)
    computed = vector_jobs.vectors(outputs)
    written = plan.texts
    rows, cut = np.empty((len(written), images.shape[1]), np.float32), set[int]()  # (labels × templates, C)
    for place, text in enumerate(written):
        cached = plan.vectors.get(text)
        rows[place], truncated = computed[place] if cached is None else (np.frombuffer(cached, np.float32, images.shape[1]), cached[-1])
        if truncated:
            cut.add(place // len(plan.templates))
    classes = rows.reshape(len(plan.labels), len(plan.templates), -1).mean(axis=1)  # (labels, C)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    cosines: NDArray[np.float32] = images @ classes.T
    return cosines, len(cut)


def to_scores(cosines: NDArray[np.float32], text: TextSpec) -> NDArray[np.float32]:
    """Convert cosines to scores (images, labels), with the scale and bias that the pair was trained with."""
    logits = cosines.astype(np.float64) * text.scale + text.bias
    if text.scores == "sigmoid":
        logs = -np.logaddexp(0, -logits)
    else:
        logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return np.exp(logs).astype(np.float32)


def _result(scores: NDArray[np.float32], cosines: NDArray[np.float32], one: Outputs, plan: ZeroShotPlan) -> ZeroShotResult:
    best = (-cosines).argsort(kind="stable")[: plan.top_k].tolist()  # many of the scores are 0 or 1
    min_cosine = -np.inf if plan.threshold is None else plan.threshold
    predictions = [
        LabelScore(plan.labels[index], index, float(scores[index]), float(cosines[index])) for index in best if cosines[index] >= min_cosine
    ]
    tokens_in, tokens_out = one["tokens"].tolist()
    return ZeroShotResult(predictions, Merging(plan.rung, plan.schedule, tokens_in, tokens_out))


def _count_cached(plan: ZeroShotPlan) -> int:
    """Count labels all of whose texts have cached vectors."""
    each = len(plan.templates)
    written = plan.texts
    return sum(all(text in plan.vectors for text in written[place : place + each]) for place in range(0, len(written), each))
