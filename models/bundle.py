"""The bundle: a folder `NAME/VERSION/` with `bundle.json` and its weights, the only thing that passes between training and server.

The weights are `model.safetensors`, or `model.onnx` for a foreign graph.

Imports no torch: gateways read specs, and tools list and verify bundles, without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from models.merge_schedule import MergeSchedule

SPEC_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
GRAPH_FILE = "model.onnx"
"""Instead of `WEIGHTS_FILE` in bundles whose weights are a graph."""
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class BundleError(Exception):
    """A bundle cannot be used; the message says which file and why."""


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Task = Literal[
    "classify",
    "embed",
    "zero-shot",
    "inpaint",
    "autoencode",
    "reconstruct",
    "actions",
    "audio-visual",
    "body",
    "pose",
    "track",
]
"""The purpose of a bundle's model; `docs/bundles.md` lists what each task takes and answers."""

MOST_BLOCKS = 1024
"""Of a network. Gateways make schedules of as many numbers, for whoever asks."""

COUNTS = frozenset({"depth", "patch_size"})
"""Fields of a config that gateways read."""

LABELLED: frozenset[Task] = frozenset({"classify", "actions", "audio-visual"})
"""Tasks whose answers are scores of labels."""


class Preprocess(_Schema):
    """Image, or every frame of a clip → model input. `mean` and `std` are for pixels scaled to [0, 1]."""

    image_size: int = Field(gt=0)
    """Side of a square, or the height if there is an `image_width`."""
    image_width: int | None = Field(default=None, gt=0)
    short_side: int = Field(gt=0)
    """Length of the short side before the crop. For an oblong crop the image is resized until it covers a box of the crop's proportions
    with this short side."""
    fit: Literal["crop", "squeeze"] = "crop"
    """crop: the short side to `short_side`, then the centre; squeeze: the whole image into the square, whatever its proportions."""
    interpolation: Literal["bicubic", "bilinear", "tf1-bicubic"] = "bicubic"
    """tf1-bicubic: TensorFlow 1's, which makes the image of its largest centred square (`models.media.legacy_resize`)."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @model_validator(mode="after")
    def _crop_fits(self) -> Preprocess:
        if self.short_side < min(self.image_size, self.image_width or self.image_size):
            raise ValueError(f"short_side {self.short_side} is smaller than image_size {self.image_size}")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        if self.interpolation == "tf1-bicubic" and (self.fit, self.short_side, self.image_width) != ("crop", self.image_size, None):
            raise ValueError("interpolation tf1-bicubic needs fit crop, short_side like image_size, and no image_width")
        return self


class Clip(_Schema):
    """How frames are taken from a video: `frames` of them, `stride` apart at `rate` frames a second."""

    frames: int = Field(gt=0)
    stride: float = Field(gt=0)
    rate: float = Field(default=30.0, gt=0)


class Sound(_Schema):
    """Sound → log-mel spectrogram (`models.media.fbank`), its values less `mean` and divided by twice `std`."""

    sample_rate: int = Field(default=16_000, gt=0)
    frames: int = Field(gt=0)
    """Number of 10 ms frames; longer sounds are cut, shorter ones padded."""
    mel_bins: int = Field(gt=0)
    mean: float
    std: float = Field(gt=0)


class Space(_Schema):
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


class Rung(_Schema):
    """One step of the ladder: a merge schedule with its accuracy and its forward throughput relative to merging off, both measured.

    Both are None where nothing was measured, as after importing somebody else's checkpoint."""

    name: str = Field(pattern=r"^[a-z][a-z0-9._-]*$")
    schedule: int | list[int] | dict[str, int | float]
    accuracy: float | None = Field(default=None, ge=0, le=1)
    throughput: float | None = Field(default=None, gt=0)

    @field_validator("name")
    @classmethod
    def _not_off(cls, name: str) -> str:
        if name == "off":
            raise ValueError("`off` means no merging and cannot be the name of a rung")
        return name

    @property
    def merge(self) -> MergeSchedule:
        return MergeSchedule.parse(self.schedule)


Preset = Literal["draft", "fast", "standard", "full"]
"""A sampler and its steps by name, as `docs/tasks/inpainting.md` lists them."""

Role = Literal["detector", "pose", "appearance", "actions"]
"""What a member does in a pipeline: find people, tell their poses, describe what they look like, name what they do."""


class Member(_Schema):
    """Another bundle that a pipeline is made of. It lies beside the pipeline, in the same folder of bundles."""

    name: str
    version: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of its `bundle.json`, which holds that of its weights: so the digest of a pipeline's spec covers all that it computes with."""

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"


class Accuracies(_Schema):
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


LEAST_AGREEMENT = 0.99
"""Of `Accuracies.agreement_bound`, for a rung to be served in int8."""


class Int8(_Schema):
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
        if found.agreement_bound is not None and found.agreement_bound < LEAST_AGREEMENT:
            return f"labels are only sure to agree with float32's in {found.agreement_bound:.2%}, and {LEAST_AGREEMENT:.0%} are needed"
        return None


FillMethod = Literal["network", "exemplar", "network-exemplar"]
"""How holes are filled: by the network, by copying patches of the image around them, or by copying from the network's result on."""


class Fill(_Schema):
    """The method for some holes: those at most `thickness` pixels thick (twice the distance of the innermost pixel to the edge, in steps to
    all eight sides) in crops of at most `side` pixels along the longer side. None: of any. Of several rules the first that fits counts."""

    method: FillMethod
    thickness: int | None = Field(default=None, gt=0)
    side: int | None = Field(default=None, gt=0)

    def fits(self, thickness: float, side: int) -> bool:
        return (self.thickness is None or thickness <= self.thickness) and (self.side is None or side <= self.side)


class Weights(_Schema):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class BundleSpec(_Schema):
    """The content of `bundle.json`."""

    schema_version: Literal[1] = 1
    name: str
    version: str
    task: Task
    architecture: str
    config: dict[str, Any]
    preprocess: Preprocess | None = None
    """None for a model that takes no pixels."""
    clip: Clip | None = None
    """None for a model that takes no video."""
    sound: Sound | None = None
    """None for a model that takes no sound."""
    space: Space | None = None
    """None for a model that reconstructs nothing, or asks as MCC does for CO3D."""
    labels: list[str] = Field(default_factory=list)
    license: str
    description: str = ""
    trained_on: str = ""
    """One line for readers: which data, how much of it."""
    note: str = ""
    """What a reader should know before trusting the answers, such as that it is a small starter."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    quality: dict[str, Any] = Field(default_factory=dict)
    ladder: list[Rung] = Field(default_factory=list)
    default_rung: str | None = None
    members: dict[Role, Member] = Field(default_factory=dict)
    """Of a pipeline, which has no weights of its own: its file of weights is empty."""
    int8: Int8 | None = None
    """None: it was not measured, and is not served."""
    temperature: float | None = Field(default=None, ge=0, le=1)
    """Of a model that fills holes: share of the drawn noise that it is asked with unless a request says otherwise; None: all of it."""
    fill: list[Fill] = Field(default_factory=list)
    """Of a model that fills holes: by which method unless a request says otherwise; where no rule fits, by the network."""
    preset: Preset | None = None
    """Of a model that fills holes: the preset that it is asked with unless a request says otherwise; None: the service's."""
    weights: Weights

    @field_validator("name", "version")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not NAME_PATTERN.fullmatch(value):
            raise ValueError(f"{value!r}: use a-z, 0-9, '.', '_' and '-', starting with a letter or digit, at most 64 characters")
        return value

    @field_validator("config")
    @classmethod
    def _not_endless(cls, config: dict[str, Any]) -> dict[str, Any]:
        for name, value in config.items():
            if name.endswith("depth") and _number(value) > MOST_BLOCKS:
                raise ValueError(f"{name} {value} is more than {MOST_BLOCKS} blocks")
            if name in COUNTS and not _is_integer(value):
                raise ValueError(f"{name} {value!r} must be an integer")
        return config

    @model_validator(mode="after")
    def _rungs(self) -> BundleSpec:
        names = [rung.name for rung in self.ladder]
        if len(set(names)) != len(names):
            raise ValueError("ladder: two rungs have the same name")
        if self.default_rung is not None and self.default_rung not in names:
            raise ValueError(f"default_rung {self.default_rung!r} is not in the ladder ({', '.join(names) or 'empty'})")
        if names and not self.merges:
            raise ValueError(f"ladder: tokens of architecture {self.architecture} do not merge")
        return self

    @model_validator(mode="after")
    def _what_the_task_needs(self) -> BundleSpec:
        if self.task == "classify" and (self.preprocess is None or not self.labels):
            raise ValueError("task classify needs preprocess and labels")
        if self.task == "classify" and self.preprocess is not None and self.preprocess.image_width is not None:
            raise ValueError("preprocess: task classify takes square pictures, without image_width")
        if self.labels and self.task not in LABELLED:
            raise ValueError(f"labels: task {self.task} has none")
        return self

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def merges(self) -> bool:
        """Whether the model can merge tokens."""
        from models.registry import architectures  # its entries import this module

        architecture = architectures().get(self.architecture)
        return architecture is None or architecture.merges

    @property
    def pictures(self) -> Preprocess:
        """How images are prepared. Raises BundleError for a model that takes none."""
        if self.preprocess is None:
            raise BundleError(f"{self.id}: task {self.task} takes no pictures")
        return self.preprocess

    @property
    def weights_file(self) -> str:
        from models.registry import architectures  # its entries import this module

        architecture = architectures().get(self.architecture)
        return WEIGHTS_FILE if architecture is None or architecture.open is None else GRAPH_FILE

    def rung(self, name: str) -> Rung | None:
        return next((rung for rung in self.ladder if rung.name == name), None)

    def to_bytes(self) -> bytes:
        content = self.model_dump(mode="json")
        empty: dict[str, Any] = {"members": {}, "fill": [], "int8": None, "temperature": None, "preset": None, "trained_on": "", "note": ""}
        for name, nothing in empty.items():
            if content[name] == nothing:  # versions that do not know the field read the others, and agree on their digests
                del content[name]
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

    def digest(self) -> str:
        """SHA-256 of the serialised spec, the key under which workers publish it."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def published_as(self, digest: str) -> BundleSpec:
        """Keeps the digest under which it was found: a version of Opsin that knows other fields would compute another one."""
        self.__dict__["_digest"] = digest
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("_digest", None)  # that of another content
        return copy

    @staticmethod
    def from_bytes(data: bytes, source: str = SPEC_FILE) -> BundleSpec:
        try:
            return BundleSpec.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "content"
            raise BundleError(f"{source}: {where}: {first['msg']}") from error


class Bundle(_Schema):
    """A bundle on disk."""

    path: Path
    spec: BundleSpec

    @property
    def weights_path(self) -> Path:
        return self.path / self.spec.weights_file

    def members(self) -> dict[Role, Bundle]:
        """The bundles that a pipeline is made of, their specs checked against the pipeline's. Raises BundleError."""
        return {role: self._member(role, member) for role, member in self.spec.members.items()}

    def _member(self, role: Role, member: Member) -> Bundle:
        path = self.member_path(member)
        where = f"{self.path / SPEC_FILE}: members.{role}"
        try:
            sha256 = sha256_of(path / SPEC_FILE)
        except OSError as error:
            raise BundleError(f"{where}: {member.id} is not at {path} ({error.strerror})") from error
        if sha256 != member.sha256:
            raise BundleError(f"{where}: the {SPEC_FILE} at {path} is not the one that this pipeline was made with (its SHA-256 differs)")
        return read(path)

    def member_path(self, member: Member) -> Path:
        return self.path.parent.parent / member.name / member.version

    def verify(self) -> None:
        """Check the weights' length and SHA-256 against the spec, and a pipeline's members. Raises BundleError."""
        path, expected = self.weights_path, self.spec.weights
        try:
            size = path.stat().st_size
        except OSError as error:
            raise BundleError(f"{path}: missing ({error.strerror})") from error
        if not path.is_file():
            raise BundleError(f"{path}: is no ordinary file")
        if size != expected.bytes:
            raise BundleError(f"{path}: {size} bytes where {SPEC_FILE} says {expected.bytes}: truncated or another file")
        try:
            found = sha256_of(path)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
        if found != expected.sha256:
            raise BundleError(f"{path}: its SHA-256 is not the one in {SPEC_FILE}: damaged or another file")
        for member in self.members().values():
            member.verify()


def _is_integer(value: Any) -> bool:
    """As gateways read it."""
    try:
        int(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _number(value: Any) -> float:
    """As architectures and gateways read it, for whom 6e7 and "60000000" are whole, too; 0.0 for what is none, which they refuse."""
    try:
        return float(value)
    except OverflowError:
        return inf
    except (TypeError, ValueError):
        return 0.0


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> Bundle:
    """Read one bundle folder; the weights are not opened (see `Bundle.verify`). Raises BundleError."""
    spec_path = path / SPEC_FILE
    try:
        if spec_path.exists() and not spec_path.is_file():
            raise BundleError(f"{spec_path}: is no ordinary file")  # a pipe or a device may be read for ever
        data = spec_path.read_bytes()
    except OSError as error:
        versions = sorted(str(found.parent) for found in path.glob(f"*/{SPEC_FILE}"))
        hint = f"; a bundle is a folder NAME/VERSION, such as {versions[-1]}" if versions else ""
        raise BundleError(f"{spec_path}: cannot be read ({error.strerror}){hint}") from error
    spec = BundleSpec.from_bytes(data, str(spec_path))
    return Bundle(path=path, spec=spec)


def member(bundle: Bundle) -> Member:
    """How a pipeline names a bundle."""
    return Member(name=bundle.spec.name, version=bundle.spec.version, sha256=sha256_of(bundle.path / SPEC_FILE))


def rewrite(bundle: Bundle, spec: BundleSpec) -> Bundle:
    """Replace `bundle.json` of the same weights; readers see the old one or the new one."""
    path = bundle.path / SPEC_FILE
    with tempfile.NamedTemporaryFile(dir=bundle.path, prefix=".writing-", delete=False) as file:
        file.write(spec.to_bytes())
    Path(file.name).chmod(path.stat().st_mode & 0o777)
    Path(file.name).replace(path)
    return Bundle(path=bundle.path, spec=spec)


def read_placed(path: Path) -> Bundle:
    """Read a folder that `discover` found. Raises BundleError, also for a copy of a bundle that lies in the folder of its name: the copy
    must not hide it."""
    bundle = read(path)
    spec = bundle.spec
    place = path.parents[1] / spec.name / spec.version
    if path != place and (place / SPEC_FILE).exists():
        raise BundleError(
            f"{path / SPEC_FILE}: {spec.id} is at {place}; "
            f"to serve a copy as {path.parent.name}@{path.name}, change `name` and `version` in it"
        )
    return bundle


def discover(root: Path) -> Iterator[Path]:
    """Bundle folders `NAME/VERSION/` below root, in name order."""
    if root.is_dir():
        yield from sorted(spec.parent for spec in root.glob(f"*/*/{SPEC_FILE}") if not spec.parent.name.startswith("."))


def write(root: Path, spec: BundleSpec, weights: Path, *, overwrite: bool = False) -> Bundle:
    """Write `root/NAME/VERSION/` atomically from a finished file of weights (copied). `spec.weights` is filled in here.

    Readers see the whole bundle or none of it. Raises BundleError if the version exists and `overwrite` is False.
    """
    target = root / spec.name / spec.version
    if target.exists() and not overwrite:
        raise BundleError(f"{target}: exists already; choose another version, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    name = spec.weights_file
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    try:
        shutil.copyfile(weights, staging / name)
        sealed = spec.model_copy(update={"weights": Weights(sha256=sha256_of(staging / name), bytes=(staging / name).stat().st_size)})
        (staging / SPEC_FILE).write_bytes(sealed.to_bytes())
        for written in (name, SPEC_FILE):
            with (staging / written).open("rb") as file:
                os.fsync(file.fileno())
        staging.chmod(0o755)
        if target.exists():
            retired = Path(tempfile.mkdtemp(prefix=".retired-", dir=target.parent))
            target.rename(retired / target.name)
            staging.rename(target)
            shutil.rmtree(retired)
        else:
            staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return Bundle(path=target, spec=sealed)
