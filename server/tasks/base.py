"""The interface of a task: tables of its parts and options, and pure functions from a request to arrays and from arrays to an answer.

A task knows nothing of HTTP, queues, batches or devices. What the service says and reads of it, in `/v1`, in the Open Inference Protocol,
in OpenAPI and in the documentation, is made from its tables. What only some tasks do is a class of `capabilities`, inherited beside
`Task`. `docs/extending.md` adds a task.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

import msgspec
from numpy.typing import NDArray

from models.bundle import BundleSpec
from server.media.images import ImageDecoder
from server.tasks.options import Options

JSON = "application/json"

Arrays = dict[str, NDArray[Any]]
Outputs = Mapping[str, NDArray[Any]]
"""Arrays that the forward call answers for a job. `tokens`, int32 (2,), if it is there: how many entered the network and how many left."""
Item = Mapping[str, bytes]
"""A unit that is prepared by itself: each element of a repeated part, with the parts that are given once beside it."""
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a job's arrays, by name."""

OptionsT = TypeVar("OptionsT", bound=Options)
PlanT = TypeVar("PlanT", bound=msgspec.Struct)


@dataclass(frozen=True)
class Part:
    """A row of the table of parts: something encoded that a request brings."""

    name: str
    kind: Literal["image", "video", "audio", "text", "file"]
    description: str
    max_count: int | None = 1
    """None: `OPSIN_MAX_IMAGES`. A part that may be repeated has a plural in JSON: `image`, `images`."""
    required: bool = True
    together: bool = False
    """Whether all its elements, texts, are one item: a list in JSON."""

    @property
    def repeated(self) -> bool:
        return self.max_count != 1


@dataclass(frozen=True)
class Tensor:
    """An input or output in the Open Inference Protocol; `dims` without the batch."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    labels: Sequence[str] = ()
    """Names along the last dimension, where the extension `classification` may be asked for."""
    is_file: bool = False
    """Whether the elements are files: in JSON they are base64, in binary data their own bytes. Inputs that are no texts always are."""


@dataclass(frozen=True)
class File:
    """An answer that is no JSON."""

    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str | None = None
    """None: the one that was asked for."""


class Task(ABC, Generic[OptionsT, PlanT]):
    """One row of `registry.TASKS`, served by `POST /v1/<name>`.

    The docstring of a subclass is its documentation: the first line sums it up, the rest is its description."""

    name: ClassVar[str]
    parts: ClassVar[tuple[Part, ...]]
    """The first of them may be the whole body."""
    options: type[OptionsT]
    answer: ClassVar[type[msgspec.Struct]]
    """The task's own fields of the JSON answer; `id`, `model`, `version` and `timing` are put around them."""
    example: ClassVar[msgspec.Struct | None] = None
    """An example of the answer, for the documentation."""

    def __init_subclass__(cls) -> None:
        """Raises TypeError for a public member that neither `Task` nor an inherited capability declares: it would never be called."""
        super().__init_subclass__()
        declared = {name for base in cls.__mro__[1:] for name in (*vars(base), *inspect.get_annotations(base))}
        unknown = [name for name in vars(cls) if not name.startswith("_") and name not in declared]
        if unknown:
            raise TypeError(f"{cls.__name__}: {', '.join(unknown)}: declared neither by Task nor by a capability that it inherits")

    @abstractmethod
    def prepare(self, item: Item, plan: PlanT, spec: BundleSpec, decoder: ImageDecoder) -> list[Arrays]:
        """An item → the arrays of one or more jobs. Runs in a thread unless the item is small. Raises MediaError, and InvalidOption for
        an option that does not go with the item."""

    @abstractmethod
    def present(self, outputs: Sequence[Outputs], plan: PlanT, spec: BundleSpec, media_type: str) -> msgspec.Struct | File:
        """The outputs of all jobs, in their order → an `answer` for JSON, a File for any other media type that the task offers."""

    @abstractmethod
    def result_bound(self, plan: PlanT, spec: BundleSpec, arrays: Arrays) -> int:
        """Bytes that the outputs of the job with these arrays take at most, its largest preview included: an asynchronous job reserves so
        much."""

    @abstractmethod
    def samples(self, spec: BundleSpec) -> Sequence[Arrays]:
        """The arrays of a job of usual size, then of one of every other kind that the bundle takes, for warming up: the network gets them
        without arguments, `merge` apart."""


def summary(task: Task[Any, Any]) -> str:
    return inspect.getdoc(type(task)).partition("\n")[0].rstrip(".")  # type: ignore[union-attr]


def description(task: Task[Any, Any]) -> str:
    """Return the docstring below its first line, in one line a paragraph."""
    rest = inspect.getdoc(type(task)).partition("\n")[2].strip()  # type: ignore[union-attr]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in rest.split("\n\n"))
