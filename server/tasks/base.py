"""The interface of a task: tables of its parts and options, and pure functions from a request to arrays and from arrays to an answer.

A task knows nothing of HTTP, queues, batches or devices. What the service says and reads of it, in `/v1`, in the Open Inference Protocol,
in OpenAPI and in the documentation, is made from its tables. `docs/extending.md` adds one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

import msgspec
from numpy.typing import NDArray

from models.bundle import BundleSpec
from models.registry import architectures
from server.media.images import Decoder
from server.media.limits import Limits
from server.tasks.options import Options

JSON = "application/json"

Arrays = dict[str, NDArray[Any]]
Outputs = Mapping[str, NDArray[Any]]
"""Arrays that the forward call answers for a job. `tokens`, int32 (2,), if it is there: how many entered the network and how many left."""
Item = Mapping[str, bytes]
"""A unit that is prepared by itself: each element of a repeated part, with the parts that are given once beside it."""
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a job's arrays, by name."""

Asked = TypeVar("Asked", bound=Options)
Plan = TypeVar("Plan", bound=msgspec.Struct)


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


class Task(ABC, Generic[Asked, Plan]):
    """One row of `registry.TASKS`, served by `POST /v1/<route>`."""

    name: ClassVar[str]
    route: ClassVar[str] = ""
    """The name of the task whose route it shares, with the same `options` and `answer`: the parts of a request tell which one is meant.
    Empty: it has a route of its own."""
    bundle_tasks: ClassVar[tuple[str, ...]] = ()
    """`task` of the bundles that it serves; empty: its own name alone."""
    part_sets: ClassVar[tuple[tuple[str, ...], ...]] = ((),)
    """The sets of parts that have a default bundle each; one empty set: there is one, whatever parts come."""
    summary: ClassVar[str]
    description: ClassVar[str] = ""
    parts: ClassVar[tuple[Part, ...]]
    """The first of them may be the whole body."""
    options: type[Asked]
    plan_type: type[Plan]
    answer: ClassVar[type[msgspec.Struct]]
    """The task's own fields of the JSON answer; `id`, `model`, `version` and `timing` are put around them."""
    example: ClassVar[msgspec.Struct]
    """An example of the answer, for the documentation."""
    takes_long: ClassVar[bool] = False
    """Whether its requests have `OPSIN_JOB_TIMEOUT` as their default deadline, and may have as much."""
    media_types: ClassVar[tuple[str, ...]] = (JSON,)
    """Media types of answers, the preferred one first."""
    kept_arrays: ClassVar[tuple[str, ...]] = ()
    """Names of those outputs that are kept as a scene, which can be asked again; where it is kept, `present` finds an output `kept`."""

    echoed_arrays: ClassVar[tuple[str, ...]] = ()
    """Names of arrays of `prepare` that `present` needs again, among the outputs: gateways that still have them put them there, and only
    where an answer may be presented elsewhere a worker sends them back."""
    unread_arrays: ClassVar[tuple[str, ...]] = ()
    """Names of those echoed arrays that no model reads: they never come to a device, and leave the gateway only where an answer may be
    presented elsewhere."""
    without_tensor: ClassVar[tuple[str, ...]] = ()
    """Options, off by default, whose answer has no tensor: they are refused in the Open Inference Protocol."""
    beside: ClassVar[str] = ""
    """The option that the jobs of `prepare_beside` come from, as errors name it."""

    @property
    def route_name(self) -> str:
        return self.route or self.name

    def serves(self, spec: BundleSpec) -> bool:
        """Whether it serves a bundle: one of its `bundle_tasks`, or of another `task` if the bundle answers on the route that it shares and
        its architecture can be asked, as for the vectors of MAE's autoencoders but not of MAE-ST's."""
        if spec.task not in (self.bundle_tasks or (self.name,)) or spec.answers != (self.route or spec.task):
            return False
        architecture = architectures().get(spec.architecture)
        return spec.task == self.route_name or architecture is None or architecture.serves(spec.task)

    def default_name(self, parts: Collection[str]) -> str:
        """The name under which `registry.DEFAULTS` and `OPSIN_DEFAULT_MODELS` have the default bundle for requests with these parts."""
        return "-".join((self.route_name, *(sorted(parts) if self.part_sets != ((),) else ())))

    def misfit(self, spec: BundleSpec, parts: Collection[str]) -> int:
        """How far a bundle that takes these of `part_sets` is from being made for just them: the default is one with the least."""
        return 0

    def answers(self, spec: BundleSpec) -> bool:
        """Whether a bundle that it serves has all that answers need: one that has not is the default only where no other one is known."""
        return True

    def takes(self, spec: BundleSpec) -> tuple[Part, ...]:
        """The parts that one bundle takes."""
        return self.parts

    def offers(self, asked: Asked | Plan) -> tuple[str, ...]:
        """Those of `media_types` that an answer may have where this is asked for."""
        return self.media_types

    @abstractmethod
    def plan(self, asked: Asked, spec: BundleSpec) -> Plan:
        """All that will be done, with the bundle's defaults filled in; what was drawn at random included. Raises InvalidOption.

        Plans are stored with results, so that another gateway can present them an hour later.
        """

    def looks_first(self, item: Item, spec: BundleSpec) -> bool:
        """Whether the bundle has to see an item before it can be prepared: then a job by itself comes first. Not asked of one that
        `is_small`."""
        return False

    def prepare_first(self, item: Item, plan: Plan, spec: BundleSpec, decoder: Decoder) -> Arrays:
        """The arrays of that job. Runs, and raises, as `prepare` does."""
        raise NotImplementedError

    def told(self, outputs: Outputs) -> Item:
        """The parts that the outputs of that job add to the item before it is prepared."""
        raise NotImplementedError

    @abstractmethod
    def prepare(self, item: Item, plan: Plan, spec: BundleSpec, decoder: Decoder) -> list[Arrays]:
        """An item → the arrays of one or more jobs. Runs in a thread unless the item `is_small`. Raises MediaError, and InvalidOption for
        an option that does not go with the item."""

    def is_small(self, item: Item) -> bool:
        """Whether `prepare` takes less than handing it to a thread is worth."""
        return False

    def bucket(self, plan: Plan, spec: BundleSpec, shapes: Shapes) -> str:
        """A key of all that must agree inside a batch besides the bundle, of a job whose arrays have these shapes. By default it is made of
        shapes and arguments, which a forward pass has once for its batch. Tasks whose jobs take steps may let more share a batch."""
        return msgspec.json.encode((shapes, self.arguments_of(plan, shapes))).decode()

    def arguments(self, plan: Plan) -> dict[str, Any]:
        """Arguments of the forward call. Warm-up calls the network without them, `merge` apart, so they need defaults there."""
        return {}

    def arguments_of(self, plan: Plan, shapes: Shapes) -> dict[str, Any]:
        """The same for one job, which brings arrays of these shapes."""
        return self.arguments(plan)

    def texts(self, plan: Plan) -> Sequence[str]:
        """The texts whose vectors the answer needs beside what the items become, and that may be recalled from an earlier request."""
        return ()

    def recalled(self, plan: Plan, vectors: Mapping[str, bytes]) -> Plan:
        """The plan with those vectors of its `texts` that were recalled, as `learned` wrote them."""
        return plan

    def prepare_beside(self, plan: Plan, spec: BundleSpec) -> list[Arrays]:
        """The arrays of the jobs of the request that belong to none of its items: those of its `texts` that were not recalled."""
        return []

    def learned(self, outputs: Sequence[Outputs], plan: Plan) -> dict[str, bytes]:
        """The vectors of `texts` that these outputs hold, in bytes of the task's own."""
        return {}

    @abstractmethod
    def present(self, outputs: Sequence[Outputs], plan: Plan, spec: BundleSpec, media_type: str) -> msgspec.Struct | File:
        """The outputs of all jobs, in their order → an `answer` for JSON, a File for any other of `media_types`."""

    def memory_to_present(self, outputs: Sequence[Outputs], plan: Plan) -> int:
        """Bytes that `present` and `to_tensors` take at most beside the outputs. They wait until what prepares and presents elsewhere
        leaves so much of the memory for both together. Raises what `present` does."""
        return 0

    def presents_aside(self, outputs: Sequence[Outputs], plan: Plan) -> bool:
        """Whether `present` and `to_tensors`, or the JSON of what they return, take so long that they run in a thread."""
        return self.takes_long

    def presents_apart(self, plan: Plan, media_type: str) -> bool:
        """Whether `present` takes so long, or so much memory, that it runs in a child process."""
        return False

    def scene_of(self, plan: Plan) -> str:
        """The name under which `kept_arrays` are kept."""
        raise NotImplementedError

    def placed(self, plan: Plan, partition: str) -> Plan:
        """The plan once it is known where it will be queued: ids that it gives to clients begin with the partition."""
        return plan

    def plan_again(self, asked: Asked, spec: BundleSpec, scene: str) -> Plan:
        """The plan of a job that asks a kept scene. Raises InvalidOption."""
        raise NotImplementedError

    def prepare_again(self, kept: Outputs, plan: Plan, limits: Limits) -> Arrays:
        """`kept_arrays` of an earlier job → the arrays of one that asks again. Raises InvalidOption."""
        raise NotImplementedError

    @abstractmethod
    def result_bound(self, plan: Plan, spec: BundleSpec, sizes: Mapping[str, int]) -> int:
        """Bytes that the outputs of one job take at most, its largest preview included: so much room is kept for an asynchronous job.

        sizes: `sizes` of what was prepared for it."""

    def sizes(self, arrays: Arrays) -> dict[str, int]:
        """Sizes of one job's arrays that decide how large its result is: bytes, by name."""
        return {name: array.nbytes for name, array in arrays.items()}

    def preview(self, arrays: Outputs, plan: Plan, spec: BundleSpec) -> msgspec.Struct | None:
        """Arrays that a worker can show before the end → the data of a `preview` event; None: nothing."""
        return None

    def steps(self, plan: Plan, arrays: Arrays | None = None) -> int | None:
        """Passes of the network that one job takes, where that is known before; None: as many as its bundle's usual jobs.

        arrays: None before the item is prepared; then so many at least."""
        return None

    def counted(self, jobs: Sequence[Arrays]) -> tuple[int, str]:
        """How many of which unit the jobs of a request, which bring these arrays, come to where progress counts whole jobs."""
        return len(jobs), "images"

    def weight(self, spec: BundleSpec, shapes: Shapes) -> float:
        """Cost of one job, which brings arrays of these shapes, in usual jobs."""
        return 1.0

    @property
    def shows_previews(self) -> bool:
        return type(self).preview is not Task.preview

    @abstractmethod
    def sample(self, spec: BundleSpec) -> Arrays:
        """The arrays of one job of usual size, for warming up, which knows no plan: the network gets them without `arguments`."""

    def other_samples(self, spec: BundleSpec) -> Sequence[Arrays]:
        """The arrays of a job of every other kind that the bundle takes: each is run once in warm-up."""
        return ()

    def tensors(self, spec: BundleSpec) -> tuple[Sequence[Tensor], Sequence[Tensor]] | None:
        """Inputs (named like the parts) and outputs in the Open Inference Protocol; None: it is not offered there."""
        return None

    def to_tensors(self, outputs: Sequence[Outputs], plan: Plan, spec: BundleSpec) -> tuple[Arrays, dict[str, Any]]:
        """The outputs of all jobs → arrays named like the output tensors, one row per job, and the parameters of the response."""
        raise NotImplementedError
