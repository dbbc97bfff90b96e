"""Schema of the parts of `bundle.json`: preprocessing, clips, sound, query space, texts, ladder, members and files. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal
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
"""Text for terminals, without control characters, which they would obey, and surrogates, which cannot be encoded."""


class Schema(BaseModel):
    """Base class: fields cannot change, and unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OmitsDefaults(Schema):
    """Base class that omits defaults, so that bundles keep the digests that versions without these fields computed."""

    omitted: ClassVar[Mapping[str, Any]]

    @model_serializer(mode="wrap")
    def _omit_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name not in self.omitted or value != self.omitted[name]}


TaskName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
"""Task of a bundle's model. `docs/bundles.md` lists ours with their inputs and outputs; packages may add others."""

MAX_BLOCKS = 1024
"""Maximum number of blocks of a network: gateways expand schedules to as many numbers for any client."""

INTEGER_FIELDS = frozenset({"depth", "patch_size"})
"""Integer fields of a config that gateways read."""

LABELLED_TASKS: frozenset[TaskName] = frozenset({"classify", "actions", "audio-visual"})
"""Tasks whose outputs are scores of labels."""


MAX_SIDE = 4096


MIN_STD = 1e-6
"""Minimum of `std`, by which inputs are divided: smaller ones overflow float32."""


class Preprocess(Schema):
    """Preparation of an image, or of every frame of a clip. `mean` and `std` are for pixels scaled to [0, 1]."""

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
    """tf1-bicubic: TensorFlow 1's, of the image's largest centred square (`models.media.image_ops`)."""
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[FiniteFloat, FiniteFloat, FiniteFloat]

    @model_validator(mode="after")
    def _check_sizes(self) -> Preprocess:
        if self.short_side < min(self.image_size, self.image_width or self.image_size):
            raise ValueError(f"short_side {self.short_side} is smaller than image_size {self.image_size}")
        if min(self.std) < MIN_STD:
            raise ValueError(f"std must be at least {MIN_STD:g}")
        if self.interpolation == "tf1-bicubic" and (self.fit, self.short_side, self.image_width) != ("crop", self.image_size, None):
            raise ValueError("interpolation tf1-bicubic needs fit crop, short_side like image_size, and no image_width")
        return self


class Clip(OmitsDefaults):
    """Sampling of frames from a video: `frames` of them, `stride` apart at `rate` frames per second."""

    omitted = {"smooth": False}
    frames: int = Field(gt=0)
    stride: float = Field(gt=0)
    rate: float = Field(default=30.0, gt=0)
    smooth: bool = False
    """Whether frames are antialiased when they shrink, as by Pillow and transformers; MAE-ST and SlowFast do not."""

    @staticmethod
    def like_slowfast(frames: int) -> Clip:
        """Return the clip of a published model of SlowFast or MAE-ST."""
        return Clip(frames=frames, stride=3.0 if frames in (32, 40) else 4.0)


class Sound(Schema):
    """Log-mel spectrogram of a sound (`models.media.fbank`), its values minus `mean` and divided by twice `std`."""

    sample_rate: int = Field(default=16_000, gt=0)
    frames: int = Field(gt=0)
    """Number of 10 ms frames; longer sounds are cut, shorter ones padded."""
    mel_bins: int = Field(gt=0)
    mean: float
    std: float = Field(ge=MIN_STD)


class QuerySpace(Schema):
    """Space in which a reconstruction is queried, and the way image and seen points are brought there. Lengths are in normalised units:
    metres divided by the spread of the seen points. The defaults are MCC's for CO3D (arXiv 2301.08247)."""

    region: Literal["cube", "half-ball"] = "cube"
    """cube: an object, cropped to its mask, centred on its points; queries from -extent to extent on each axis. half-ball: a scene, the
    camera at the origin, its background kept; queries with z >= 0 within a distance of `extent`."""
    extent: float = Field(default=3.0, gt=0)
    spacing: float = Field(default=0.1, gt=0)
    """Default distance between neighbouring queries."""
    reach: float = Field(default=0.1, gt=0)
    """Distance from the surface within which points count as occupied in training."""
    margin: int = Field(default=40, ge=0)
    """Margin of the crop around an object, in pixels."""
    source_size: int | None = Field(default=None, gt=0)
    """Side to which the crop is resized before the network resizes it to its own, as in training; None: directly to the network's."""


MAX_TEMPLATES = 100
MAX_TEMPLATE_CHARS = 256
MAX_TEXT_TOKENS = 8192


class TextSpec(OmitsDefaults):
    """Texts as input of an image-text pair, and scores from the cosines of images and texts."""

    omitted = {"bias": 0.0}
    length: int = Field(gt=0, le=MAX_TEXT_TOKENS)
    """Maximum number of tokens of a text, special ones included. Longer texts are cut before the special ones are added."""
    padding: Literal["longest", "length"] = "longest"
    """longest: texts are padded to the longest of their batch; length: to `length`, if the network reads padding like words (FLIP)."""
    empty: bool = True
    """Whether an empty text is allowed."""
    templates: list[str] = Field(default=["{}"], min_length=1, max_length=MAX_TEMPLATES)
    """Sentences for zero-shot classification, in which `{}` stands for the label."""
    scale: float = Field(gt=0, allow_inf_nan=False)
    """Factor of the cosine before softmax or sigmoid: the inverse of the temperature."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: over the labels of a request; sigmoid: each label by itself."""
    bias: float = Field(default=0.0, allow_inf_nan=False)
    """Added to scale × cosine before sigmoid."""

    @field_validator("templates")
    @classmethod
    def _check_templates(cls, templates: list[str]) -> list[str]:
        for index, template in enumerate(templates, start=1):
            if template.count("{}") != 1:
                raise ValueError(f"template {index}, {template[:MAX_TEMPLATE_CHARS]!r}: exactly one {{}} is needed, where the label goes")
            if len(template) > MAX_TEMPLATE_CHARS:
                raise ValueError(f"template {index}: {len(template)} characters are more than {MAX_TEMPLATE_CHARS}")
        return templates


Metric = Literal["top-1", "mean-average-precision", "agreement", "text-recall", "image-recall"]
"""Metric of a rung's accuracy, a number from 0 to 1. Inputs are images, clips or sounds.

top-1: share of labelled inputs whose best label is theirs. mean-average-precision: mean over the labels of how well scores rank the inputs
that have a label before the others (average precision without interpolation), for inputs of several labels. agreement: share of inputs
whose best label is the same as without merging.

text-recall: captions whose nearest image of a folder is theirs (recall@1 from text to image). image-recall: images whose merged vector is
nearer to their own unmerged one than to that of any other image of a folder.
"""


class Rung(OmitsDefaults):
    """Rung of the ladder: a merge schedule with its accuracy and its forward throughput relative to merging off.

    Both are measured; None if they were not, as after the import of a foreign checkpoint.
    """

    omitted = {"metric": "top-1", "schedule_sight": None}
    name: str = Field(pattern=r"^[a-z][a-z0-9._-]*$")
    schedule: int | list[int] | dict[str, int | float]
    schedule_sight: int | list[int] | dict[str, int | float] | None = None
    """Schedule of the visual half of a model that also hears; None: `schedule` is for both."""
    accuracy: float | None = Field(default=None, ge=0, le=1)
    throughput: float | None = Field(default=None, gt=0)
    metric: Metric = "top-1"

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name == "off":
            raise ValueError("`off` means no merging and cannot be the name of a rung")
        return name

    @field_validator("schedule", "schedule_sight")
    @classmethod
    def _check_size(cls, schedule: int | list[int] | dict[str, int | float] | None) -> int | list[int] | dict[str, int | float] | None:
        values = [schedule] if isinstance(schedule, int) else schedule.values() if isinstance(schedule, dict) else schedule or []
        if any(abs(value) > MAX_MERGED_TOKENS for value in values):
            raise ValueError(f"no block merges more than {MAX_MERGED_TOKENS} tokens")
        return schedule

    @property
    def merge(self) -> MergeSchedule:
        return MergeSchedule.parse(self.schedule)

    @property
    def merge_sight(self) -> MergeSchedule | None:
        return None if self.schedule_sight is None else MergeSchedule.parse(self.schedule_sight)


PresetName = Literal["draft", "fast", "standard", "full"]
"""Name of a sampler with its number of steps, as `docs/tasks/inpainting.md` lists them."""

Role = Literal["detector", "pose", "appearance", "actions", "shape", "depth"]
"""Role of a member of a pipeline: detecting people, estimating their poses, encoding their appearance, classifying their actions; or
reconstructing a shape from an image with depth, and estimating the depth of an image without."""


class MemberReference(Schema):
    """Member of a pipeline: another bundle in the same folder of bundles."""

    name: str
    version: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of its `bundle.json`, which has that of its weights: so the digest of a pipeline's spec covers all that it computes with."""

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"


class Accuracies(OmitsDefaults):
    """Accuracies of a merge schedule on the same images, in both number formats."""

    omitted = dict.fromkeys(("loss_error", "agreement", "agreement_bound"))
    float32: float = Field(ge=0, le=1)
    int8: float = Field(ge=0, le=1)
    loss_error: float | None = Field(default=None, ge=0)
    """Standard error of the difference of the two, which were measured on the same images."""
    agreement: float | None = Field(default=None, ge=0, le=1)
    """Share of images that have the same label in both."""
    agreement_bound: float | None = Field(default=None, ge=0, le=1)
    """Lower bound of the one-sided 95 % Clopper-Pearson interval of `agreement`. None, as both other fields: earlier bundles lack it."""


MIN_AGREEMENT = 0.99
"""Minimum of `Accuracies.agreement_bound` for a rung to be served in int8."""


class Int8(Schema):
    """Second axis of the ladder: the loss of accuracy in 8-bit integers, as `opsin calibrate` measured it."""

    bound: float = Field(ge=0, le=1)
    """Maximum loss of accuracy of a rung that is served in int8."""
    images: int = Field(gt=0)
    rungs: dict[str, Accuracies]
    """Accuracies by rung, including `off`."""

    def allows(self, rung: str) -> bool:
        return self.refusal(rung) is None

    def refusal(self, rung: str) -> str | None:
        """Return why a rung is not served in int8; None if it is."""
        accuracies = self.rungs.get(rung)
        if accuracies is None:
            return "it was not measured"
        if accuracies.float32 - accuracies.int8 > self.bound:
            return f"it loses {accuracies.float32 - accuracies.int8:.2%} of accuracy, more than the bound of {self.bound:.2%}"
        if accuracies.agreement_bound is not None and accuracies.agreement_bound < MIN_AGREEMENT:
            return f"labels are only sure to agree with float32's in {accuracies.agreement_bound:.2%}, and {MIN_AGREEMENT:.0%} are needed"
        return None


class FormatComparison(Schema):
    """Logits in one number format and with one merging, compared with those of the original code."""

    format: Literal["float32", "bfloat16", "int8"]
    merging: str
    """A rung, or `off`."""
    max_difference: FiniteFloat | None
    """None: some logits were infinite or NaN."""
    same_labels: int = Field(ge=0)
    """Number of images whose best label is that of the original code."""


class Comparison(Schema):
    images: int = Field(gt=0)
    results: list[FormatComparison]

    @staticmethod
    def from_quality(quality: Mapping[str, Any]) -> Comparison | None:
        """Read the comparison from a bundle's `quality`, a field that all versions can read; None if there is none."""
        try:
            return Comparison.model_validate(quality.get("comparison"))
        except ValidationError:
            return None


ExternalRole = Literal["body"]
"""Use of an external file. body: the mesh of a person (`models.people.smpl`)."""

FillMethod = Literal["network", "exemplar", "network-exemplar"]
"""Method of filling holes: the network, copies of patches of the image, or such copies that start from the network's result."""


class FillRule(Schema):
    """Method for some holes: those at most `thickness` pixels thick (twice the distance of the innermost pixel to the edge, in steps to all
    eight sides) in crops of at most `side` pixels along the longer side. None: no limit. Of several rules the first that fits counts."""

    method: FillMethod
    thickness: int | None = Field(default=None, gt=0)
    side: int | None = Field(default=None, gt=0)

    def fits(self, thickness: float, side: int) -> bool:
        return (self.thickness is None or thickness <= self.thickness) and (self.side is None or side <= self.side)


class FileDigest(Schema):
    """Length and SHA-256 of a bundle's file: its weights, or another one."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class ExternalFile(FileDigest):
    """File that a bundle computes with and that it may not contain, since each user needs a licence: its path on a worker's machine, length
    and SHA-256."""

    path: str = Field(pattern=r"^/")
