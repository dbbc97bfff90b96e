"""Image → labels. Input: uint8 (S, S, 3) at the bundle's size. Output: logits (classes,) and the token counts (in, out)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from models.bundle import BundleSpec
from server.media import images
from server.tasks import base
from server.tasks.base import Arrays, FileAnswer, Item, OptionsT, Outputs, PlanT, RequestPart, Shapes, Tensor
from server.tasks.options import MERGED, VALUES, InvalidOption, RequestOptions, schedule_of

DEFAULT_TOP_K = 5

MAX_VIEWS = 30
MAX_WINDOWS = 12

IMAGE = RequestPart("image", "image", "JPEG, PNG, WebP, GIF, BMP or TIFF, detected by content.", max_count=None)


class ClassifyOptions(RequestOptions, frozen=True, kw_only=True):
    top_k: Annotated[
        int | None,
        Meta(ge=1, description="How many labels.", extra={"values": "1 to the number of classes", "default": str(DEFAULT_TOP_K)}),
    ] = None
    merge: Annotated[
        MERGED | None,
        Meta(description="Token merging.", extra={"values": VALUES, "default": "the bundle's default rung"}),
    ] = None
    merge_sight: Annotated[
        MERGED | None,
        Meta(description="Token merging of what is seen, by a bundle that also hears.", extra={"values": VALUES, "default": "as `merge`"}),
    ] = None
    trace: Annotated[
        bool, Meta(description="Also return which patches were merged, block by block; of clips and sound in each view or window.")
    ] = False
    timeline: Annotated[
        bool, Meta(description="Also return the scores of each view of a clip or window of sound, and stream them as they come.")
    ] = False
    views: Annotated[
        int | None, Meta(ge=1, le=MAX_VIEWS, description="Views of a video, spread over its time.", extra={"default": "the bundle's"})
    ] = None
    crops: Annotated[
        Literal[1, 3] | None,
        Meta(description="Crops of each view: its centre, or three along its longer side.", extra={"default": "the bundle's"}),
    ] = None
    start_s: Annotated[float | None, Meta(ge=0, description="Start of the part to classify, in seconds.", extra={"default": "0"})] = None
    end_s: Annotated[
        float | None, Meta(gt=0, description="End of the part, at most the end of the file.", extra={"default": "the end of the file"})
    ] = None
    windows: Annotated[
        int | None, Meta(ge=1, le=MAX_WINDOWS, description="Consecutive windows of sound.", extra={"default": "all that fit"})
    ] = None
    use: Annotated[
        Literal["both", "sound", "sight"] | None,
        Meta(
            description="Inputs that a bundle for sound and video uses.",
            extra={"default": "all parts that were sent and the bundle supports"},
        ),
    ] = None


CLIP_OPTIONS = ("merge_sight", "views", "crops", "start_s", "end_s", "windows", "use")
"""Options that do not apply to images."""


class ClassifyPlan(msgspec.Struct, frozen=True):
    """Plan of images. `rung` is the one that names the schedule, if one does; `schedule` is r of every block."""

    top_k: int
    rung: str | None
    schedule: tuple[int, ...]
    trace: bool = False


class Prediction(msgspec.Struct, frozen=True):
    """One label; `score` is its softmax probability, or its sigmoid if the bundle's labels do not exclude each other."""

    label: str
    index: int
    score: float


class Trace(msgspec.Struct, frozen=True):
    """Patches that were one token after each block: `layers` holds the group id of every patch of the grid, its last axis fastest.

    The grid of an image is [rows, columns], of a clip [times, rows, columns], of a spectrogram [times, mel bins]."""

    grid: tuple[int, ...]
    layers: list[list[int]]


class Merging(msgspec.Struct, frozen=True):
    """Merging of tokens: `rung` is null unless one was used, `schedule` is r of every block, token counts include special tokens."""

    rung: str | None
    schedule: tuple[int, ...]
    tokens_in: int
    tokens_out: int
    trace: Trace | msgspec.UnsetType = msgspec.UNSET
    schedule_sight: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    """r of every block of the half that sees, if it is another one; `schedule` is then of the half that hears."""


class ClipFacts(msgspec.Struct, frozen=True):
    """Sampling of a video: frames of a view, views in time, crops of each, and duration of the part that they are spread over."""

    frames: int
    views: int
    crops: int
    duration_s: float


class SoundFacts(msgspec.Struct, frozen=True):
    """Sampling of sound: seconds that its windows cover, their number, and samples a second."""

    seconds: float
    windows: int
    sample_rate: int


class ViewScores(msgspec.Struct, frozen=True):
    """The labels of one view of a clip, or of one window of sound: its best ones and those that are best in the mean, best first.

    A view lasts from the second of its first frame to that of its last one."""

    start_s: float
    end_s: float
    predictions: list[Prediction]
    frames_s: list[float] | msgspec.UnsetType = msgspec.UNSET
    """Seconds of the frames, with a trace of what is seen."""
    trace: Trace | msgspec.UnsetType = msgspec.UNSET
    trace_sight: Trace | msgspec.UnsetType = msgspec.UNSET
    """Trace of the half that sees, if both were requested; `trace` is then that of the half that hears."""


class Classification(msgspec.Struct, frozen=True):
    """The best labels of one image, or of a clip, best first."""

    predictions: list[Prediction]
    merging: Merging | None
    """Null for models without tokens."""
    clip: ClipFacts | msgspec.UnsetType = msgspec.UNSET
    sound: SoundFacts | msgspec.UnsetType = msgspec.UNSET
    timeline: list[ViewScores] | msgspec.UnsetType = msgspec.UNSET
    """The views or windows one by one, in the order of time."""


class ClassifyAnswer(msgspec.Struct, frozen=True):
    results: list[Classification]
    """Results in the order of the images, or one of a clip."""


class ImageTask(base.Task[OptionsT, PlanT]):
    """A task whose items are images, each of which becomes one job with `pixels` uint8 (S, S, 3) at the bundle's size."""

    def prepare(self, item: Item, plan: PlanT, spec: BundleSpec, decoder: images.ImageDecoder) -> list[Arrays]:
        with decoder.decode(item["image"]) as image:
            return [{"pixels": images.to_model_size(image, spec.image_preprocess, decoder.max_pixels)}]

    def samples(self, spec: BundleSpec) -> Sequence[Arrays]:
        side = spec.image_preprocess.image_size
        return ({"pixels": np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)},)


class ClassifyTask(
    ImageTask[ClassifyOptions, ClassifyPlan],
    base.Plans[ClassifyOptions, ClassifyPlan],
    base.ControlsBatching[ClassifyPlan],
    base.OffersTensors[ClassifyPlan],
):
    """Classify images, clips and sound.

    Images; or a video, sound, or both, if a bundle takes them: the scores of its views and windows are averaged.
    """

    name = "classify"
    parts = (IMAGE,)
    options = ClassifyOptions
    plan_type = ClassifyPlan
    answer = ClassifyAnswer
    options_without_tensor = ("timeline", "trace")
    example = ClassifyAnswer(
        [
            Classification(
                [Prediction("Chad", 205, 0.52), Prediction("Romania", 180, 0.41)],
                Merging("steps13", (13, 13, 13, 10), tokens_in=65, tokens_out=16),
            )
        ]
    )

    def plan(self, options: ClassifyOptions, spec: BundleSpec) -> ClassifyPlan:
        top_k = resolve_top_k(options.top_k, spec)
        for name in CLIP_OPTIONS:
            if (value := getattr(options, name)) is not None:
                raise InvalidOption(name, f"{value}: {spec.id} classifies images; leave it out")
        if options.timeline:
            raise InvalidOption("timeline", f"true: {spec.id} classifies images, which have no views; leave it out")
        rung, schedule = schedule_of(None if options.merge is None else str(options.merge), spec)
        check_trace(options, spec)
        return ClassifyPlan(top_k, rung, schedule, options.trace)

    def arguments(self, plan: ClassifyPlan, shapes: Shapes) -> dict[str, Any]:
        return {"merge": list(plan.schedule)} | ({"trace": True} if plan.trace else {})

    def present(self, outputs: Sequence[Outputs], plan: ClassifyPlan, spec: BundleSpec, media_type: str) -> ClassifyAnswer | FileAnswer:
        return ClassifyAnswer([_classification(one, plan, spec) for one in outputs])

    def result_bound(self, plan: ClassifyPlan, spec: BundleSpec, arrays: Arrays) -> int:
        """Bound logits (classes,) and tokens (2,); with a trace groups (depth, patches) and grid (2,)."""
        traced = len(plan.schedule) * patches(spec) + 2 if plan.trace else 0
        return 4 * len(spec.labels) + 8 * (2 + traced)

    def tensors(self, spec: BundleSpec) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return (Tensor("image", "BYTES", (1,)),), labelled_tensors(spec)

    def to_tensors(self, outputs: Sequence[Outputs], plan: ClassifyPlan, spec: BundleSpec) -> tuple[Arrays, dict[str, Any]]:
        scores = np.stack([_softmax(one["logits"]) for one in outputs])  # (images, classes)
        tokens_in, tokens_out = (int(count) for count in outputs[0]["tokens"])
        merging: dict[str, Any] = {"tokens_in": tokens_in, "tokens_out": tokens_out} if tokens_in else {}
        return to_labelled_tensors(scores, spec), merging if plan.rung is None else {**merging, "rung": plan.rung}


def check_trace(options: ClassifyOptions, spec: BundleSpec) -> None:
    """Raise InvalidOption if there is nothing to trace."""
    if options.trace and not spec.merges:
        raise InvalidOption("trace", f"the tokens of {spec.id} do not merge: there is nothing to trace")


def resolve_top_k(requested: int | None, spec: BundleSpec) -> int:
    """Return the number of labels to return. Raises InvalidOption."""
    classes = len(spec.labels)
    top_k = min(DEFAULT_TOP_K, classes) if requested is None else requested
    if top_k > classes:
        raise InvalidOption("top_k", f"{top_k}: use an integer from 1 to {classes}, the number of classes of {spec.id}")
    return top_k


def patches(spec: BundleSpec) -> int:
    """Return how many patches an image has."""
    return int((spec.image_preprocess.image_size // int(spec.config.get("patch_size", 16))) ** 2)


def _classification(outputs: Outputs, plan: ClassifyPlan, spec: BundleSpec) -> Classification:
    """Present the `top_k` best labels of one image; equal scores in the order of the classes."""
    predictions = best_labels(_softmax(outputs["logits"]), plan.top_k, spec)
    tokens_in, tokens_out = outputs["tokens"].tolist()
    if not tokens_in:
        return Classification(predictions, None)
    trace = Trace(tuple(outputs["grid"].tolist()), outputs["groups"].tolist()) if plan.trace else msgspec.UNSET
    return Classification(predictions, Merging(plan.rung, plan.schedule, tokens_in, tokens_out, trace))


def labelled_tensors(spec: BundleSpec) -> tuple[Tensor, Tensor]:
    scores = Tensor("scores", "FP32", (len(spec.labels),), labels=spec.labels)
    return scores, Tensor("labels", "BYTES", (min(DEFAULT_TOP_K, len(spec.labels)),))


def to_labelled_tensors(scores: NDArray[np.float32], spec: BundleSpec) -> Arrays:
    """Return `scores` (n, classes) and the best `labels` (n, 5) of each; fewer if there are fewer classes."""
    labels = np.array([label.encode() for label in spec.labels], object)
    return {"scores": scores, "labels": labels[_best(scores, min(DEFAULT_TOP_K, len(labels)))]}


def best_labels(scores: NDArray[np.float32], count: int, spec: BundleSpec) -> list[Prediction]:
    """Return the labels of the highest scores (classes,), best first; equal ones in the order of the classes."""
    best = _best(scores, count)
    return [Prediction(spec.labels[index], index, score) for index, score in zip(best.tolist(), scores[best].tolist(), strict=True)]


def _softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Return probabilities (classes,). It uses ufuncs, since numpy's functions around them cost more than the work on few classes."""
    powers = np.exp(np.subtract(logits, np.maximum.reduce(logits), dtype=np.float64))
    scores: NDArray[np.float32] = (powers / np.add.reduce(powers)).astype(np.float32)
    return scores


def _best(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return indices of the highest scores along the last axis, best first; equal scores in the order of the classes."""
    return (-scores).argsort(axis=-1, kind="stable")[..., :count]
