"""Features of some tasks: classes that a task inherits together with `Task`. Callers use `isinstance`; tasks without one cost nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Generic

import msgspec

from models.bundle import BundleSpec
from server.media.images import ImageDecoder
from server.media.limits import MediaLimits
from server.tasks.base import JSON, Arrays, Item, OptionsT, Outputs, PlanT, RequestPart, Shapes, Task, Tensor


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

    def with_partition(self, plan: PlanT, partition: str) -> PlanT:
        """Return the plan for a partition of the queue: ids of scenes begin with it."""
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
