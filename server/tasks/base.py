"""The interface of a task: tables of its parts and options, and pure functions from a request to arrays and from arrays to an answer.

A task knows nothing of HTTP, queues, batches or devices. The service makes routes, the Open Inference Protocol, OpenAPI and documentation
from its tables. What only some tasks do are capabilities: classes that a task inherits together with `Task`. Callers use `isinstance`, so
that tasks without one cost nothing. `docs/extending.md` adds a task.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

import msgspec
from numpy.typing import NDArray

from models.bundle import BundleSpec
from server.media.images import ImageDecoder
from server.media.limits import MediaLimits
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


class Plans(Generic[OptionsT, PlanT]):
    """Planning. Without it, the plan is the options."""

    plan_type: type[PlanT]

    def plan(self, options: OptionsT, spec: BundleSpec) -> PlanT:
        """Return all that will be done, with the bundle's defaults filled in; what was drawn at random included. Raises InvalidOption.

        Plans are stored with results, so that another gateway can present them an hour later.
        """
        raise NotImplementedError


class SelectsBundles:
    """A choice of bundles: of others than those of the task's name, or on the route of another task."""

    parts: ClassVar[tuple[RequestPart, ...]]
    route: ClassVar[str] = ""
    """Name of the task whose route it shares, with the same `options` and `answer`: the parts of a request decide which one is meant.
    Empty for a route of its own."""
    bundle_tasks: ClassVar[tuple[str, ...]] = ()
    """`task` of the bundles that it serves. Empty for its own name alone."""
    part_sets: ClassVar[tuple[tuple[str, ...], ...]] = ((),)
    """Sets of parts that have a default bundle each. A single empty set stands for one default, whatever the parts."""

    def accepted_parts(self, spec: BundleSpec) -> tuple[RequestPart, ...]:
        """Return the parts that one bundle takes."""
        return self.parts

    def mismatch(self, spec: BundleSpec, parts: Collection[str]) -> int:
        """Return the distance of a bundle that takes these of `part_sets` from one made for just them: the smallest is the default."""
        return 0

    def can_answer(self, spec: BundleSpec) -> bool:
        """Return whether a bundle has all that answers need. One that has not is the default only if no other is known."""
        return True


class OffersFiles(Generic[OptionsT, PlanT]):
    """Answers in formats other than JSON."""

    media_types: ClassVar[tuple[str, ...]]
    """Media types of answers, the preferred one first."""

    def offered_media_types(self, request: OptionsT | PlanT) -> tuple[str, ...]:
        """Return those of `media_types` that the answer to this request may have."""
        return self.media_types


class ControlsBatching(Generic[PlanT]):
    """Arguments of the forward call, and batches. Without it: no arguments, and batches of jobs of equal shapes."""

    def arguments(self, plan: PlanT, shapes: Shapes) -> dict[str, Any]:
        """Return the arguments of the forward call for a job whose arrays have these shapes. Warm-up calls the network without them,
        `merge` apart, so they need defaults there."""
        return {}

    def bucket(self, plan: PlanT, spec: BundleSpec, shapes: Shapes) -> str:
        """Return a key of all that must agree inside a batch besides the bundle. By default it is made of shapes and arguments, which a
        forward pass has once for its batch. Tasks whose jobs take steps may let more share a batch."""
        return msgspec.json.encode((shapes, self.arguments(plan, shapes))).decode()

    def weight(self, spec: BundleSpec, shapes: Shapes) -> float:
        """Return the cost of one job, relative to a typical job."""
        return 1.0


class TakesSteps(Generic[PlanT]):
    """Jobs of several steps. The default deadline of their requests is `OPSIN_JOB_TIMEOUT`, its maximum, and the last eighth of the queue
    is not for them."""

    def steps(self, plan: PlanT, arrays: Arrays | None) -> int | None:
        """Return the number of passes of the network that one job takes. None if it is that of the bundle's typical jobs.

        arrays: None before the item is prepared; then the result is a minimum."""
        return None


class Counts:
    """Progress in units other than images."""

    def progress_total(self, jobs: Sequence[Arrays]) -> tuple[int, str]:
        """Return the number of units in the jobs of a request, and the unit."""
        raise NotImplementedError


class Previews(Generic[PlanT]):
    """Previews of unfinished jobs."""

    def preview(self, arrays: Outputs, plan: PlanT, spec: BundleSpec) -> msgspec.Struct | None:
        """Convert arrays that a worker sends before the end to the data of a `preview` event. Return None for no preview."""
        raise NotImplementedError


class EchoesArrays:
    """Presenting that needs arrays of `prepare` again."""

    echoed_arrays: ClassVar[tuple[str, ...]]
    """Names of arrays that `present` finds among the outputs: gateways that still have them put them there, and a worker sends them back if
    an answer may be presented elsewhere."""
    unread_arrays: ClassVar[tuple[str, ...]] = ()
    """Names of those that no model reads: they never reach a device, and leave the gateway only if an answer may be presented elsewhere."""


class RecallsTexts(Generic[PlanT]):
    """Answers that need vectors of texts, which earlier requests may have computed."""

    texts_option: ClassVar[str]
    """Option that the texts come from, as errors name it."""

    def texts(self, plan: PlanT) -> Sequence[str]:
        raise NotImplementedError

    def with_cached(self, plan: PlanT, vectors: Mapping[str, bytes]) -> PlanT:
        """Return the plan with cached vectors of texts, as `vectors_to_cache` wrote them."""
        raise NotImplementedError

    def prepare_texts(self, plan: PlanT, spec: BundleSpec) -> list[Arrays]:
        """Return the arrays of the jobs of the texts that were not cached."""
        raise NotImplementedError

    def vectors_to_cache(self, outputs: Sequence[Outputs], plan: PlanT) -> dict[str, bytes]:
        """Return the vectors of texts in these outputs, in the task's own format."""
        raise NotImplementedError


class TwoStage(Generic[PlanT]):
    """Jobs in two stages: some bundles must see an item before it can be prepared, in a first job."""

    def needs_first_stage(self, item: Item, spec: BundleSpec) -> bool:
        raise NotImplementedError

    def prepare_first_stage(self, item: Item, plan: PlanT, spec: BundleSpec, decoder: ImageDecoder) -> Arrays:
        """Return the arrays of that job. Runs, and raises, as `prepare` does."""
        raise NotImplementedError

    def parts_from_first_stage(self, outputs: Outputs) -> Item:
        """Return the parts that the outputs of that job add to the item."""
        raise NotImplementedError


class KeepsScenes(Generic[OptionsT, PlanT]):
    """Outputs that are kept as a scene, which can be queried again. `present` then finds an output `kept`."""

    kept_arrays: ClassVar[tuple[str, ...]]

    def scene_of(self, plan: PlanT) -> str:
        """Return the name under which `kept_arrays` are kept."""
        raise NotImplementedError

    def with_cell(self, plan: PlanT, digits: str) -> PlanT:
        """Return the plan for a cell: the id of its scene begins with these digits."""
        raise NotImplementedError

    def plan_followup(self, options: OptionsT, spec: BundleSpec, scene: str) -> PlanT:
        """Return the plan of a job that queries a kept scene. Raises InvalidOption."""
        raise NotImplementedError

    def prepare_followup(self, scene_arrays: Outputs, plan: PlanT, limits: MediaLimits) -> Arrays:
        """Convert `kept_arrays` of an earlier job to the arrays of one that queries it again. Raises InvalidOption."""
        raise NotImplementedError


class PresentsElsewhere(Generic[PlanT]):
    """Presenting that takes memory or time. Without it: in a thread if the task takes steps, else in the event loop."""

    def memory_to_present(self, outputs: Sequence[Outputs], plan: PlanT) -> int:
        """Return the maximum memory in bytes that `present` and `to_tensors` take besides the outputs.

        They wait until it is available in the budget of preparing and presenting. Raises what `present` does."""
        return 0

    def present_in_thread(self, outputs: Sequence[Outputs], plan: PlanT) -> bool:
        """Return whether `present` and `to_tensors`, or the JSON of their results, take so long that they run in a thread."""
        return isinstance(self, TakesSteps)

    def present_in_subprocess(self, plan: PlanT, media_type: str) -> bool:
        """Return whether `present` takes so long, or so much memory, that it runs in a child process."""
        return False


class OffersTensors(Generic[PlanT]):
    """An interface in the Open Inference Protocol."""

    options_without_tensor: ClassVar[tuple[str, ...]] = ()
    """Options, off by default, whose answers have no tensor: they are rejected there."""

    def tensors(self, spec: BundleSpec) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the inputs (named like the parts) and outputs."""
        raise NotImplementedError

    def to_tensors(self, outputs: Sequence[Outputs], plan: PlanT, spec: BundleSpec) -> tuple[Arrays, dict[str, Any]]:
        """Convert the outputs of all jobs to arrays named like the output tensors, one row per job, and the parameters of the response."""
        raise NotImplementedError


DEFAULT_BATCHING = ControlsBatching[Any]()


def batching(task: Task[Any, Any]) -> ControlsBatching[Any]:
    return task if isinstance(task, ControlsBatching) else DEFAULT_BATCHING


def plan_type(task: Task[Any, Any]) -> type[msgspec.Struct]:
    kind: type[msgspec.Struct] = task.plan_type if isinstance(task, Plans) else task.options
    return kind


def plan_of(task: Task[Any, Any], options: msgspec.Struct, spec: BundleSpec) -> msgspec.Struct:
    """Return a task's plan for one bundle. Raises InvalidOption."""
    plan: msgspec.Struct = task.plan(options, spec) if isinstance(task, Plans) else options
    return plan


def accepted_parts(task: Task[Any, Any], spec: BundleSpec) -> tuple[RequestPart, ...]:
    """Return the parts that one bundle takes."""
    return task.accepted_parts(spec) if isinstance(task, SelectsBundles) else task.parts


def media_types(task: Task[Any, Any]) -> tuple[str, ...]:
    return task.media_types if isinstance(task, OffersFiles) else (JSON,)


def offered_media_types(task: Task[Any, Any], request: msgspec.Struct) -> tuple[str, ...]:
    """Return the media types that the answer to this request, its options or its plan, may have."""
    return task.offered_media_types(request) if isinstance(task, OffersFiles) else (JSON,)


def is_presented_in_thread(task: Task[Any, Any], outputs: Sequence[Outputs], plan: msgspec.Struct) -> bool:
    """Return whether the answer is made in a thread."""
    return task.present_in_thread(outputs, plan) if isinstance(task, PresentsElsewhere) else isinstance(task, TakesSteps)
