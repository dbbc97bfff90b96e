"""The interface of a task: tables of its parts and options, and pure functions from a request to arrays and from arrays to an answer.

A task knows nothing of HTTP, queues, batches or devices. The service makes routes, the Open Inference Protocol, OpenAPI and documentation
from its tables. Features of some tasks are classes of `capabilities`, inherited together with `Task`. `docs/extending.md` adds a task.
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
from server.tasks.options import RequestOptions

JSON = "application/json"

Arrays = dict[str, NDArray[Any]]
Outputs = Mapping[str, NDArray[Any]]
"""Arrays of a forward call's answer for one job. `tokens`, int32 (2,), if present: number of tokens that entered and left the network."""
Item = Mapping[str, bytes]
"""A unit that is prepared separately: one element of a repeated part, with the parts that are given once."""
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a job's arrays, by name."""

OptionsT = TypeVar("OptionsT", bound=RequestOptions)
PlanT = TypeVar("PlanT", bound=msgspec.Struct)


@dataclass(frozen=True)
class RequestPart:
    """A row of the table of parts: an encoded file or text in a request."""

    name: str
    kind: Literal["image", "video", "audio", "text", "file"]
    description: str
    max_count: int | None = 1
    """None stands for `OPSIN_MAX_IMAGES`. A part that may be repeated has a plural in JSON: `image`, `images`."""
    required: bool = True
    is_one_item: bool = False
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
    """Names along the last dimension, if the extension `classification` may be requested."""
    is_file: bool = False
    """Whether the elements are files: in JSON they are base64, in binary data their own bytes. Inputs other than texts always are."""


@dataclass(frozen=True)
class FileAnswer:
    """An answer in another format than JSON."""

    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str | None = None
    """None for the requested one."""


class Task(ABC, Generic[OptionsT, PlanT]):
    """One row of `registry.TASKS`, served by `POST /v1/<name>`.

    The docstring of a subclass is its documentation: the first line sums it up, the rest is its description."""

    name: ClassVar[str]
    parts: ClassVar[tuple[RequestPart, ...]]
    """The first of them may be the whole body."""
    options: type[OptionsT]
    answer: ClassVar[type[msgspec.Struct]]
    """The task's own fields of the JSON answer, which also has `id`, `model`, `version` and `timing`."""
    example: ClassVar[msgspec.Struct | None] = None
    """An example of the answer, for the documentation."""

    def __init_subclass__(cls) -> None:
        """Raise TypeError for a public member that neither `Task` nor an inherited capability declares: it would never be called."""
        super().__init_subclass__()
        declared = {name for base in cls.__mro__[1:] for name in (*vars(base), *inspect.get_annotations(base))}
        unknown = [name for name in vars(cls) if not name.startswith("_") and name not in declared]
        if unknown:
            raise TypeError(f"{cls.__name__}: {', '.join(unknown)}: declared neither by Task nor by a capability that it inherits")

    @abstractmethod
    def prepare(self, item: Item, plan: PlanT, spec: BundleSpec, decoder: ImageDecoder) -> list[Arrays]:
        """Convert an item to the arrays of one or more jobs. Runs in a thread unless the item is small.

        Raises MediaError, and InvalidOption if an option does not go with the item."""

    @abstractmethod
    def present(self, outputs: Sequence[Outputs], plan: PlanT, spec: BundleSpec, media_type: str) -> msgspec.Struct | FileAnswer:
        """Convert the outputs of all jobs, in their order, to an `answer` for JSON, or a FileAnswer for the task's other media types."""

    @abstractmethod
    def result_bound(self, plan: PlanT, spec: BundleSpec, arrays: Arrays) -> int:
        """Return the maximum size in bytes of the outputs of the job with these arrays, with its largest preview.

        An asynchronous job reserves it."""

    @abstractmethod
    def samples(self, spec: BundleSpec) -> Sequence[Arrays]:
        """Return the arrays of a typical job, then of one of every other kind that the bundle takes.

        For warming up: the network gets them without arguments, except `merge`."""


def summary(task: Task[Any, Any]) -> str:
    return inspect.getdoc(type(task)).partition("\n")[0].rstrip(".")  # type: ignore[union-attr]


def description(task: Task[Any, Any]) -> str:
    """Return the docstring below its first line, in one line a paragraph."""
    rest = inspect.getdoc(type(task)).partition("\n")[2].strip()  # type: ignore[union-attr]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in rest.split("\n\n"))
