"""The parts of a bundle's schema: what `bundle.json` says of preprocessing, clips, sound, space, texts, the ladder, members and files.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from unicodedata import category

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from models.merge_schedule import MAX_MERGED_TOKENS, MergeSchedule


def _printable(text: str) -> str:
    if any(category(character) in ("Cc", "Cs") for character in text):
        raise ValueError(f"{text[:80]!r} holds control characters or surrogates; names are one line of text")
    return text


PrintableLine = Annotated[str, AfterValidator(_printable)]
"""Text that terminals print: they would obey control characters, and surrogates cannot be written."""


class Schema(BaseModel):
    """Fields are fixed once read, and no others are taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)


TaskName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
"""The purpose of a bundle's model. `docs/bundles.md` lists ours and what each takes and answers; packages bring others."""

MAX_BLOCKS = 1024
"""Blocks of a network, at most. Gateways make schedules of as many numbers, for whoever asks."""

INTEGER_FIELDS = frozenset({"depth", "patch_size"})
"""Fields of a config that gateways read."""

LABELLED_TASKS: frozenset[TaskName] = frozenset({"classify", "actions", "audio-visual"})
"""Tasks whose answers are scores of labels."""


MAX_SIDE = 4096
"""Pixels of a side of what an image is resized to."""


MIN_STD = 1e-6
"""Smallest `std` that inputs are divided by: below it, float32 overflows."""


class Preprocess(Schema):
    """Image, or every frame of a clip → model input. `mean` and `std` are for pixels scaled to [0, 1]."""

    image_size: int = Field(gt=0, le=MAX_SIDE)
    """Side of a square, or the height if there is an `image_width`."""
    image_width: int | None = Field(default=None, gt=0, le=MAX_SIDE)
    short_side: int = Field(gt=0, le=MAX_SIDE)
    """Length of the short side before the crop. For an oblong crop the image is resized until it covers a box of the crop's proportions
    with this short side."""
    fit: Literal["crop", "squeeze", "squeeze-crop"] = "crop"
    """crop: the short side to `short_side`, then the centre; squeeze: the whole image into the square, whatever its proportions;
    squeeze-crop: the whole image into a square of `short_side`, then its centre (DeiT in transformers)."""
    interpolation: Literal["bicubic", "bilinear", "tf1-bicubic"] = "bicubic"
    """tf1-bicubic: TensorFlow 1's, which makes the image of its largest centred square (`models.media.tf1_resize`)."""
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[FiniteFloat, FiniteFloat, FiniteFloat]

    @model_validator(mode="after")
    def _crop_fits(self) -> Preprocess:
        if self.short_side < min(self.image_size, self.image_width or self.image_size):
            raise ValueError(f"short_side {self.short_side} is smaller than image_size {self.image_size}")
        if min(self.std) < MIN_STD:
            raise ValueError(f"std must be at least {MIN_STD:g}")
        if self.interpolation == "tf1-bicubic" and (self.fit, self.short_side, self.image_width) != ("crop", self.image_size, None):
            raise ValueError("interpolation tf1-bicubic needs fit crop, short_side like image_size, and no image_width")
        return self


class Clip(Schema):
    """How frames are taken from a video: `frames` of them, `stride` apart at `rate` frames a second."""

    frames: int = Field(gt=0)
    stride: float = Field(gt=0)
    rate: float = Field(default=30.0, gt=0)
    smooth: bool = False
    """Whether frames that shrink are smoothed, as Pillow and transformers do; otherwise, as MAE-ST and SlowFast do, they are not."""

    @model_serializer(mode="wrap")
    def _as_ever(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves the usual way out: bundles of versions that know no other keep their digests."""
        return {name: value for name, value in handler(self).items() if (name, value) != ("smooth", False)}


class Sound(Schema):
    """Sound → log-mel spectrogram (`models.media.fbank`), its values less `mean` and divided by twice `std`."""

    sample_rate: int = Field(default=16_000, gt=0)
    frames: int = Field(gt=0)
    """Number of 10 ms frames; longer sounds are cut, shorter ones padded."""
    mel_bins: int = Field(gt=0)
    mean: float
    std: float = Field(ge=MIN_STD)


class QuerySpace(Schema):
    """The space that a reconstruction is asked in, and how image and seen points are brought there. Lengths are in normalised units: metres
    divided by the spread of the seen points. The defaults are MCC's for CO3D (arXiv 2301.08247)."""

    region: Literal["cube", "half-ball"] = "cube"
    """cube: an object, cropped to its mask, centred on its points; queries from -extent to extent on each axis.
    half-ball: a scene, the camera at the origin, its background kept; queries with z >= 0 within a distance of `extent`."""
    extent: float = Field(default=3.0, gt=0)
    spacing: float = Field(default=0.1, gt=0)
    """Usual distance between neighbouring queries."""
    reach: float = Field(default=0.1, gt=0)
    """Distance from the surface within which training calls a point occupied."""
    margin: int = Field(default=40, ge=0)
    """Pixels around an object that the crop keeps."""
    source_size: int | None = Field(default=None, gt=0)
    """Side that the crop is resized to before the network resizes it to its own, as in training; None: at once to the network's."""


MAX_TEMPLATES = 100
MAX_TEMPLATE_CHARS = 256
"""Characters."""
MAX_TEXT_TOKENS = 8192
"""Word pieces."""


class TextSpec(Schema):
    """How texts become a pair's input, and how the cosines of images and texts become scores."""

    length: int = Field(gt=0, le=MAX_TEXT_TOKENS)
    """Maximum number of word pieces of a text, special ones included. Longer texts are cut before the special ones are added."""
    padding: Literal["longest", "length"] = "longest"
    """longest: texts are padded to the longest of their batch; length: to `length`, where the network reads padding like words (FLIP)."""
    empty: bool = True
    """Whether an empty text is allowed."""
    templates: list[str] = Field(default=["{}"], min_length=1, max_length=MAX_TEMPLATES)
    """Sentences that a label is put into, at their `{}`, for zero-shot classification."""
    scale: float = Field(gt=0, allow_inf_nan=False)
    """Factor of the cosine before softmax or sigmoid: the inverse of the temperature."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: over the labels of a request; sigmoid: each label on its own."""
    bias: float = Field(default=0.0, allow_inf_nan=False)
    """Added to scale × cosine before sigmoid."""

    @model_serializer(mode="wrap")
    def _as_ever(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves the usual bias out: bundles of versions that know none keep their digests."""
        return {name: value for name, value in handler(self).items() if (name, value) != ("bias", 0.0)}

    @field_validator("templates")
    @classmethod
    def _one_slot_each(cls, templates: list[str]) -> list[str]:
        for number, template in enumerate(templates, start=1):
            if template.count("{}") != 1:
                raise ValueError(f"template {number}, {template[:MAX_TEMPLATE_CHARS]!r}: exactly one {{}} is needed, where the label goes")
            if len(template) > MAX_TEMPLATE_CHARS:
                raise ValueError(f"template {number}: {len(template)} characters are more than {MAX_TEMPLATE_CHARS}")
        return templates


Metric = Literal["top-1", "mean-average-precision", "agreement", "text-recall", "image-recall"]
"""Meaning of a rung's accuracy, a number from 0 to 1. Inputs are images, clips or sounds.

top-1: share of labelled inputs whose best label is theirs. mean-average-precision: mean over the labels of how well scores rank the inputs
that have a label before the others (average precision without interpolation), for inputs of several labels. agreement: share of inputs
whose best label is the same as without merging.
text-recall: captions whose nearest image of a folder is theirs (recall@1 from text to image). image-recall: images whose merged vector is
nearer to their own unmerged one than to that of any other image of a folder.
"""


class Rung(Schema):
    """One step of the ladder: a merge schedule with its accuracy and its forward throughput relative to merging off, both measured.

    Both are None where nothing was measured, as after importing somebody else's checkpoint."""

    name: str = Field(pattern=r"^[a-z][a-z0-9._-]*$")
    schedule: int | list[int] | dict[str, int | float]
    schedule_sight: int | list[int] | dict[str, int | float] | None = None
    """Schedule of the half that sees, in a model that also hears; None: `schedule` holds for both."""
    accuracy: float | None = Field(default=None, ge=0, le=1)
    throughput: float | None = Field(default=None, gt=0)
    metric: Metric = "top-1"

    @model_serializer(mode="wrap")
    def _as_ever(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out the usual metric and a second schedule that is not there: bundles of versions that know neither keep their digests."""
        usual = (("metric", "top-1"), ("schedule_sight", None))
        return {name: value for name, value in handler(self).items() if (name, value) not in usual}

    @field_validator("name")
    @classmethod
    def _not_off(cls, name: str) -> str:
        if name == "off":
            raise ValueError("`off` means no merging and cannot be the name of a rung")
        return name

    @field_validator("schedule", "schedule_sight")
    @classmethod
    def _bounded(cls, schedule: int | list[int] | dict[str, int | float] | None) -> int | list[int] | dict[str, int | float] | None:
        numbers = [schedule] if isinstance(schedule, int) else schedule.values() if isinstance(schedule, dict) else schedule or []
        if any(abs(number) > MAX_MERGED_TOKENS for number in numbers):
            raise ValueError(f"no block merges more than {MAX_MERGED_TOKENS} tokens")
        return schedule

    @property
    def merge(self) -> MergeSchedule:
        return MergeSchedule.parse(self.schedule)

    @property
    def merge_sight(self) -> MergeSchedule | None:
        return None if self.schedule_sight is None else MergeSchedule.parse(self.schedule_sight)


PresetName = Literal["draft", "fast", "standard", "full"]
"""A sampler and its steps by name, as `docs/tasks/inpainting.md` lists them."""

Role = Literal["detector", "pose", "appearance", "actions", "shape", "depth"]
"""The role of a member of a pipeline: find people, tell their poses, describe what they look like, name what they do; or make a shape of an
image with depth, and tell the depth of an image without."""


class MemberReference(Schema):
    """Another bundle that a pipeline is made of. It lies beside the pipeline, in the same folder of bundles."""

    name: str
    version: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of its `bundle.json`, which holds that of its weights: the digest of a pipeline's spec covers all that it computes with."""

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"


class Accuracies(Schema):
    """The same merge schedule on the same images, in both number formats."""

    float32: float = Field(ge=0, le=1)
    int8: float = Field(ge=0, le=1)
    loss_error: float | None = Field(default=None, ge=0)
    """Standard error of the difference of the two, which were measured on the same images."""
    agreement: float | None = Field(default=None, ge=0, le=1)
    """Share of images that have the same label in both."""
    agreement_bound: float | None = Field(default=None, ge=0, le=1)
    """Lower end of its one-sided 95 % interval by Clopper and Pearson. None, as the other two: bundles of earlier versions lack it."""

    @model_serializer(mode="wrap")
    def _measured(self, handler: SerializerFunctionWrapHandler) -> dict[str, float]:
        return {name: value for name, value in handler(self).items() if value is not None}


MIN_AGREEMENT = 0.99
"""Value of `Accuracies.agreement_bound` that a rung needs to be served in int8."""


class Int8(Schema):
    """Second axis of the ladder: the accuracy that 8-bit integers cost, as `opsin calibrate` measured it."""

    bound: float = Field(ge=0, le=1)
    """Accuracy that a rung may lose to be served so."""
    images: int = Field(gt=0)
    rungs: dict[str, Accuracies]
    """By rung; `off` is there too."""

    def allows(self, rung: str) -> bool:
        return self.refusal(rung) is None

    def refusal(self, rung: str) -> str | None:
        """The reason why a rung is not served in int8; None if it is."""
        found = self.rungs.get(rung)
        if found is None:
            return "it was not measured"
        if found.float32 - found.int8 > self.bound:
            return f"it loses {found.float32 - found.int8:.2%} of accuracy, more than the bound of {self.bound:.2%}"
        if found.agreement_bound is not None and found.agreement_bound < MIN_AGREEMENT:
            return f"labels are only sure to agree with float32's in {found.agreement_bound:.2%}, and {MIN_AGREEMENT:.0%} are needed"
        return None


class FormatComparison(Schema):
    """Logits in one number format and with one merging, against those of the original code."""

    format: Literal["float32", "bfloat16", "int8"]
    merging: str
    """A rung, or `off`."""
    max_difference: FiniteFloat | None
    """None: some logits were no numbers."""
    same_labels: int = Field(ge=0)
    """Images whose best label is that of the original code."""


class Comparison(Schema):
    """Result of `opsin compare`."""

    images: int = Field(gt=0)
    results: list[FormatComparison]

    @staticmethod
    def of(quality: Mapping[str, Any]) -> Comparison | None:
        """From a bundle's `quality`, which versions that do not know it read, too; None where there is none."""
        try:
            return Comparison.model_validate(quality.get("comparison"))
        except ValidationError:
            return None


ExternalRole = Literal["body"]
"""The use of an external file. body: the mesh of a person (`models.people.smpl_file`)."""

FillMethod = Literal["network", "exemplar", "network-exemplar"]
"""How holes are filled: by the network, by copying patches of the image around them, or by copying from the network's result on."""


class FillRule(Schema):
    """The method for some holes: those at most `thickness` pixels thick (twice the distance of the innermost pixel to the edge, in steps to
    all eight sides) in crops of at most `side` pixels along the longer side. None: of any. Of several rules the first that fits counts."""

    method: FillMethod
    thickness: int | None = Field(default=None, gt=0)
    side: int | None = Field(default=None, gt=0)

    def fits(self, thickness: float, side: int) -> bool:
        return (self.thickness is None or thickness <= self.thickness) and (self.side is None or side <= self.side)


class FileDigest(Schema):
    """Length and SHA-256 of a bundle's file: its weights, or one beside them."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class ExternalFile(FileDigest):
    """A file that a bundle computes with and may not hold, since its licence is each user's own: where it lies on a worker's machine, and
    its length and SHA-256."""

    path: str = Field(pattern=r"^/")
    """Absolute."""
