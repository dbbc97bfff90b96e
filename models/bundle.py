"""Bundles: folders `NAME/VERSION/` with `bundle.json` and weights, the only interface between training and server.

The weights are `model.safetensors`, or `model.onnx` for a foreign graph. Further files may be next to them, such as `tokenizer.json` of an
image-text pair. Imports no torch: gateways read specs, and tools list and verify bundles, without it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from models.bundle_files import digest_mismatch, file_digest, link_or_copy, replace_file, replace_folder, sha256_of
from models.bundle_schema import (
    INTEGER_FIELDS,
    LABELLED_TASKS,
    MAX_BLOCKS,
    Clip,
    ExternalFile,
    ExternalRole,
    FileDigest,
    FillRule,
    Int8,
    MemberReference,
    Preprocess,
    PresetName,
    PrintableLine,
    QuerySpace,
    Role,
    Rung,
    Schema,
    Sound,
    TaskName,
    TextSpec,
)
from models.registry import architectures

SPEC_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
GRAPH_FILE = "model.onnx"
"""File of the weights if these are a graph, instead of `WEIGHTS_FILE`."""
TOKENIZER_FILE = "tokenizer.json"
"""Further file of a pair that reads texts, in the format of the library `tokenizers` (`models.systems.image_text.tokenizer_file`)."""
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
FILE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_FILES = 16
MAX_NOTE_CHARS = 2000
"""Maximum number of characters of a note, which every answer repeats."""
OMITTED_IF_EMPTY = ("members", "external", "fill", "files", "trained_on", "note", "int8", "temperature", "preset", "text")
"""Fields omitted from `bundle.json` if empty: versions without them can read such bundles, and compute the same digest."""
VECTOR_TASKS: tuple[TaskName, ...] = ("embed", "zero-shot", "autoencode")
"""Tasks of models whose answers to images are vectors."""


class BundleError(Exception):
    """Error of a bundle that cannot be used; the message says which file and why."""


class BundleSpec(Schema):
    """The content of `bundle.json`."""

    schema_version: Literal[1] = 1
    name: str
    version: str
    task: TaskName
    architecture: str
    config: dict[str, Any]
    preprocess: Preprocess | None = None
    """None for a model that takes no pixels."""
    clip: Clip | None = None
    """None for a model that takes no video."""
    sound: Sound | None = None
    """None for a model that takes no sound."""
    space: QuerySpace | None = None
    """None for a model that reconstructs nothing, or whose queries are as MCC's for CO3D."""
    labels: list[PrintableLine] = Field(default_factory=list)
    license: PrintableLine
    description: str = ""
    trained_on: str = ""
    """One line for readers: which data, how much of it."""
    note: str = ""
    """Warning for readers before they trust the answers, such as that this is a small starter."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    quality: dict[str, Any] = Field(default_factory=dict)
    ladder: list[Rung] = Field(default_factory=list)
    default_rung: str | None = None
    members: dict[Role, MemberReference] = Field(default_factory=dict)
    """Members of a pipeline, which has no weights of its own: its file of weights is empty."""
    external: dict[ExternalRole, ExternalFile] = Field(default_factory=dict)
    """Files of a pipeline outside of all bundles; `verify` checks them."""
    int8: Int8 | None = None
    """None: int8 was not measured, and is not served."""
    temperature: float | None = Field(default=None, ge=0, le=1)
    """Default of the request option: scale of the noise that an inpainting model draws; None: 1."""
    fill: list[FillRule] = Field(default_factory=list)
    """Default of the request option: methods of an inpainting model by the size of holes; the network if no rule fits."""
    preset: PresetName | None = None
    """Default of the request option: preset of an inpainting model; None: the service's."""
    text: TextSpec | None = None
    """None: the model reads no texts, or has no tokenizer."""
    weights: FileDigest
    files: dict[str, FileDigest] = Field(default_factory=dict, max_length=MAX_FILES)
    """Further files of the bundle, by their names in its folder."""

    @field_validator("files")
    @classmethod
    def _check_files(cls, files: dict[str, FileDigest]) -> dict[str, FileDigest]:
        for name in files:
            if not is_further_file(name):
                raise ValueError(f"{name!r} is not a plain name of a further file, such as {TOKENIZER_FILE}")
        return files

    @field_validator("note")
    @classmethod
    def _check_note(cls, note: str) -> str:
        if len(note) > MAX_NOTE_CHARS:
            raise ValueError(f"{len(note)} characters; every answer repeats it, so at most {MAX_NOTE_CHARS} are taken")
        return note

    @field_validator("name", "version")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not NAME_PATTERN.fullmatch(value):
            raise ValueError(f"{value!r}: use a-z, 0-9, '.', '_' and '-', starting with a letter or digit, at most 64 characters")
        return value

    @field_validator("config")
    @classmethod
    def _check_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        for name, value in config.items():
            if name.endswith("depth") and _as_float(value) > MAX_BLOCKS:
                raise ValueError(f"{name} {value} is more than {MAX_BLOCKS} blocks")
            if name in INTEGER_FIELDS and not _is_integer(value):
                raise ValueError(f"{name} {value!r} must be an integer")
        return config

    @model_validator(mode="after")
    def _check_ladder(self) -> BundleSpec:
        names = [rung.name for rung in self.ladder]
        if len(set(names)) != len(names):
            raise ValueError("ladder: two rungs have the same name")
        if self.default_rung is not None and self.default_rung not in names:
            raise ValueError(f"default_rung {self.default_rung!r} is not in the ladder ({', '.join(names) or 'empty'})")
        if names and not self.merges:
            raise ValueError(f"ladder: tokens of architecture {self.architecture} do not merge")
        if any(rung.schedule_sight is not None for rung in self.ladder) and (self.sound is None or self.clip is None):
            raise ValueError("ladder: schedule_sight needs sound and clip: only a model of both has two halves")
        return self

    @model_validator(mode="after")
    def _check_task(self) -> BundleSpec:
        if self.task == "classify" and (self.preprocess is None or not self.labels):
            raise ValueError("task classify needs preprocess and labels")
        if self.task == "classify" and self.preprocess is not None and self.preprocess.image_width is not None:
            raise ValueError("preprocess: task classify takes square pictures, without image_width")
        if self.labels and self.task not in LABELLED_TASKS:
            raise ValueError(f"labels: task {self.task} has none")
        if self.text is not None and self.task != "zero-shot":
            raise ValueError(f"text: task {self.task} reads none; only zero-shot does")
        if self.text is not None and TOKENIZER_FILE not in self.files:
            raise ValueError(f"text: needs {TOKENIZER_FILE} in files")
        return self

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def merges(self) -> bool:
        architecture = architectures().get(self.architecture)
        return architecture is None or architecture.merges

    @cached_property
    def route(self) -> str | None:
        """Route that answers with this bundle, such as `classify` for networks that recognise actions of whole clips; None if none does."""
        architecture = architectures().get(self.architecture)
        return self.task if architecture is None or architecture.route_of is None else architecture.route_of(self.config)

    @property
    def image_preprocess(self) -> Preprocess:
        """Preparation of images. Raises BundleError for a model that takes none."""
        if self.preprocess is None:
            raise BundleError(f"{self.id}: task {self.task} takes no pictures")
        return self.preprocess

    @property
    def weights_file(self) -> str:
        architecture = architectures().get(self.architecture)
        return WEIGHTS_FILE if architecture is None or architecture.open is None else GRAPH_FILE

    @property
    def size(self) -> int:
        """Size in bytes of the weights and the further files."""
        return self.weights.bytes + sum(file.bytes for file in self.files.values())

    @property
    def embedding_dim(self) -> int:
        """Width of the vectors of images and texts: a pair's joint space, or the encoder's features.

        Raises BundleError for a task without vectors, and for a config that does not declare it.
        """
        if self.task not in VECTOR_TASKS:
            raise BundleError(f"{self.id}: task {self.task} has no vectors; {', '.join(VECTOR_TASKS)} have")
        field = "joint_width" if self.task == "zero-shot" else "width"
        width = self.config.get(field)
        if not isinstance(width, int) or width <= 0:
            raise BundleError(f"{self.id}: config: {field} {width!r} must be a positive integer")
        return 2 * width if field == "width" and self.config.get("reversible") else width

    def rung(self, name: str) -> Rung | None:
        return next((rung for rung in self.ladder if rung.name == name), None)

    def to_bytes(self) -> bytes:
        fields = self.model_dump(mode="json").items()
        content = {name: value for name, value in fields if name not in OMITTED_IF_EMPTY or value not in (None, {}, [], "")}
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

    def digest(self) -> str:
        """Return the SHA-256 of the serialised spec, the key under which workers publish it."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def with_digest(self, digest: str) -> BundleSpec:
        """Keep the digest under which this spec was found: a version of Opsin with other fields would compute another one."""
        self.__dict__["_digest"] = digest
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copy = super().model_copy(update=update, deep=deep)
        for cached in ("_digest", "route"):  # of the old content
            copy.__dict__.pop(cached, None)
        return copy

    @staticmethod
    def from_bytes(data: bytes, source: str = SPEC_FILE) -> BundleSpec:
        try:
            return BundleSpec.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = "".join(f"{part}." for part in first["loc"]).removesuffix(".")
            raise BundleError(": ".join(part for part in (source, field, first["msg"]) if part)) from error


class Bundle(Schema):
    path: Path
    spec: BundleSpec

    @property
    def weights_path(self) -> Path:
        return self.path / self.spec.weights_file

    def members(self) -> dict[Role, Bundle]:
        """Return the members of a pipeline, whose specs must be those that it was made with. Raises BundleError."""
        return {role: self._member(role, member) for role, member in self.spec.members.items()}

    def _member(self, role: Role, member: MemberReference) -> Bundle:
        path = self.member_path(member)
        source = f"{self.path / SPEC_FILE}: members.{role}"
        try:
            sha256 = sha256_of(path / SPEC_FILE)
        except OSError as error:
            raise BundleError(f"{source}: {member.id} is not at {path} ({error.strerror})") from error
        if sha256 != member.sha256:
            raise BundleError(f"{source}: the {SPEC_FILE} at {path} is not the one that this pipeline was made with (its SHA-256 differs)")
        return read(path)

    def member_path(self, member: MemberReference) -> Path:
        return self.path.parent.parent / member.name / member.version

    def verify(self) -> None:
        """Check length and SHA-256 of all files, also external ones and those of a pipeline's members. Raises BundleError."""
        for name, expected in {self.spec.weights_file: self.spec.weights, **self.spec.files}.items():
            problem = digest_mismatch(self.path / name, expected, SPEC_FILE)
            if problem:
                raise BundleError(problem)
        for role, file in self.spec.external.items():
            problem = digest_mismatch(Path(file.path), file, SPEC_FILE)
            if problem:
                raise BundleError(f"{self.path / SPEC_FILE}: external.{role}: {problem}")
        for member in self.members().values():
            member.verify()


def is_further_file(name: str) -> bool:
    """Return True if a bundle may have a file of this name in addition to its spec and its weights."""
    return FILE_PATTERN.fullmatch(name) is not None and name not in (SPEC_FILE, WEIGHTS_FILE, GRAPH_FILE)


def _is_integer(value: Any) -> bool:
    """Return True if gateways can read a value as an integer."""
    try:
        int(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _as_float(value: Any) -> float:
    """Read a number as architectures and gateways do, which accept 6e7 and "60000000" as integers; 0.0 if it is invalid."""
    try:
        return float(value)
    except OverflowError:
        return inf
    except (TypeError, ValueError):
        return 0.0


def read(path: Path) -> Bundle:
    """Read one bundle folder; the weights are not opened (see `Bundle.verify`). Raises BundleError."""
    spec_path = path / SPEC_FILE
    try:
        if spec_path.exists() and not spec_path.is_file():
            raise BundleError(f"{spec_path}: is not an ordinary file")  # a pipe or a device may be read for ever
        data = spec_path.read_bytes()
    except OSError as error:
        versions = sorted(str(candidate.parent) for candidate in path.glob(f"*/{SPEC_FILE}"))
        hint = f"; a bundle is a folder NAME/VERSION, such as {versions[-1]}" if versions else ""
        raise BundleError(f"{spec_path}: cannot be read ({error.strerror}){hint}") from error
    spec = BundleSpec.from_bytes(data, str(spec_path))
    return Bundle(path=path, spec=spec)


def member_reference(bundle: Bundle) -> MemberReference:
    """Return the reference by which a pipeline names a bundle."""
    return MemberReference(name=bundle.spec.name, version=bundle.spec.version, sha256=sha256_of(bundle.path / SPEC_FILE))


def replace_spec(bundle: Bundle, spec: BundleSpec) -> Bundle:
    """Replace `bundle.json` of the same weights; readers see the old one or the new one. Raises OSError, and BundleError if another command
    has replaced it since it was read; then the old one remains."""
    if read(bundle.path).spec.to_bytes() != bundle.spec.to_bytes():
        raise BundleError(f"{bundle.path / SPEC_FILE}: another command has changed it; run this again")
    replace_file(bundle.path / SPEC_FILE, spec.to_bytes())
    return Bundle(path=bundle.path, spec=spec)


def write(root: Path, spec: BundleSpec, weights: Path, *, files: Mapping[str, Path] | None = None, overwrite: bool = False) -> Bundle:
    """Write `root/NAME/VERSION/` atomically from a finished file of weights and further files by name (copied).

    `spec.weights` and `spec.files` are filled in here. Readers see the whole bundle or none of it. Raises BundleError if the version exists
    and `overwrite` is False.
    """
    target = root / spec.name / spec.version
    if target.exists() and not overwrite:
        raise BundleError(f"{target}: exists already; choose another version, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replace_folder(target, replace=overwrite) as staging:
            shutil.copyfile(weights, staging / spec.weights_file)
            complete = spec.model_copy(
                update={"weights": file_digest(staging / spec.weights_file), "files": _copy_files(files or {}, staging)}
            )
            (staging / SPEC_FILE).write_bytes(complete.to_bytes())
    except BaseException as error:
        with suppress(OSError):  # it may have other versions
            target.parent.rmdir()
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise BundleError(f"{target}: another command has just written it; choose another version, or remove it") from error
        raise
    return Bundle(path=target, spec=complete)


def replace_files(bundle: Bundle, spec: BundleSpec, files: Mapping[str, Path]) -> Bundle:
    """Add further files to a bundle, or replace them, together with its `bundle.json`; `spec.files` is filled in here. The weights and all
    other files in the folder stay as they are. Readers see the old bundle, none for a moment, then the new one."""
    with replace_folder(bundle.path) as staging:
        for old in bundle.path.iterdir():
            if old.is_dir():
                shutil.copytree(old, staging / old.name, copy_function=link_or_copy)
            elif old.name not in (SPEC_FILE, *files):
                link_or_copy(old, staging / old.name)
        complete = spec.model_copy(update={"files": spec.files | _copy_files(files, staging)})
        (staging / SPEC_FILE).write_bytes(complete.to_bytes())
    return Bundle(path=bundle.path, spec=complete)


def _copy_files(files: Mapping[str, Path], folder: Path) -> dict[str, FileDigest]:
    for name, source in files.items():
        shutil.copyfile(source, folder / name)
    return {name: file_digest(folder / name) for name in files}
