"""What only some tasks do. A task inherits these classes beside `Task`; callers ask `isinstance`, and tasks without one cost nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Generic

import msgspec

from models.bundle import BundleSpec
from server.media.images import ImageDecoder
from server.media.limits import MediaLimits
from server.tasks.base import JSON, Arrays, Item, OptionsT, Outputs, Part, PlanT, Shapes, Task, Tensor


class Plans(Generic[OptionsT, PlanT]):
    """A plan of its own; without, the plan is the options."""

    plan_type: type[PlanT]

    def plan(self, options: OptionsT, spec: BundleSpec) -> PlanT:
        """Return all that will be done, with the bundle's defaults filled in; what was drawn at random included. Raises InvalidOption.

        Plans are stored with results, so that another gateway can present them an hour later.
        """
        raise NotImplementedError


class SelectsBundles:
    """Serves other bundles than those of its name, or on the route of another task."""

    parts: ClassVar[tuple[Part, ...]]
    route: ClassVar[str] = ""
    """The name of the task whose route it shares, with the same `options` and `answer`: the parts of a request decide which one is meant.
    Empty: it has a route of its own."""
    bundle_tasks: ClassVar[tuple[str, ...]] = ()
    """`task` of the bundles that it serves; empty: its own name alone."""
    part_sets: ClassVar[tuple[tuple[str, ...], ...]] = ((),)
    """The sets of parts that have a default bundle each; one empty set: there is one, whatever parts come."""

    def takes(self, spec: BundleSpec) -> tuple[Part, ...]:
        """Return the parts that one bundle takes."""
        return self.parts

    def mismatch(self, spec: BundleSpec, parts: Collection[str]) -> int:
        """Return how far a bundle that takes these of `part_sets` is from being made for just them: the default is one with the least."""
        return 0

    def answers(self, spec: BundleSpec) -> bool:
        """Return whether a bundle has all that answers need: one that has not is the default only if no other one is known."""
        return True


class OffersFiles(Generic[OptionsT, PlanT]):
    """Answers that are no JSON."""

    media_types: ClassVar[tuple[str, ...]]
    """Media types of answers, the preferred one first."""

    def offers(self, request: OptionsT | PlanT) -> tuple[str, ...]:
        """Return those of `media_types` that the answer to this request may have."""
        return self.media_types


class ControlsBatching(Generic[PlanT]):
    """Arguments of the forward call, and which jobs share a batch. Without: no arguments, and jobs of equal shapes."""

    def arguments(self, plan: PlanT, shapes: Shapes) -> dict[str, Any]:
        """Return the arguments of the forward call for a job whose arrays have these shapes. Warm-up calls the network without them,
        `merge` apart, so they need defaults there."""
        return {}

    def bucket(self, plan: PlanT, spec: BundleSpec, shapes: Shapes) -> str:
        """Return a key of all that must agree inside a batch besides the bundle. By default it is made of shapes and arguments, which a
        forward pass has once for its batch. Tasks whose jobs take steps may let more share a batch."""
        return msgspec.json.encode((shapes, self.arguments(plan, shapes))).decode()

    def weight(self, spec: BundleSpec, shapes: Shapes) -> float:
        """Return the cost of one job in usual jobs."""
        return 1.0


class TakesSteps(Generic[PlanT]):
    """Jobs take several steps: `OPSIN_JOB_TIMEOUT` is the default deadline of requests, which may have as much, and the last eighth of the
    queue is not for them."""

    def steps(self, plan: PlanT, arrays: Arrays | None) -> int | None:
        """Return the passes of the network that one job takes, if that is known before; None: as many as its bundle's usual jobs.

        arrays: None before the item is prepared; then so many at least."""
        return None


class Counts:
    """Progress in other units than images."""

    def progress_total(self, jobs: Sequence[Arrays]) -> tuple[int, str]:
        """Return how many of which unit the jobs of a request come to."""
        raise NotImplementedError


class Previews(Generic[PlanT]):
    """Shows how far a job has come."""

    def preview(self, arrays: Outputs, plan: PlanT, spec: BundleSpec) -> msgspec.Struct | None:
        """Arrays that a worker can show before the end → the data of a `preview` event; None: nothing."""
        raise NotImplementedError


class EchoesArrays:
    """Needs arrays of `prepare` again to present."""

    echoed_arrays: ClassVar[tuple[str, ...]]
    """Their names; `present` finds them among the outputs: gateways that still have them put them there, and only where an answer may be
    presented elsewhere a worker sends them back."""
    unread_arrays: ClassVar[tuple[str, ...]] = ()
    """Names of those that no model reads: they never come to a device, and leave the gateway only where an answer may be presented
    elsewhere."""


class RecallsTexts(Generic[PlanT]):
    """Answers need vectors of texts that earlier requests may have computed."""

    texts_option: ClassVar[str]
    """The option that the texts come from, as errors name it."""

    def texts(self, plan: PlanT) -> Sequence[str]:
        raise NotImplementedError

    def with_cached(self, plan: PlanT, vectors: Mapping[str, bytes]) -> PlanT:
        """Return the plan with the vectors of those texts that were recalled, as `vectors_to_cache` wrote them."""
        raise NotImplementedError

    def prepare_texts(self, plan: PlanT, spec: BundleSpec) -> list[Arrays]:
        """Return the arrays of the jobs of the texts that were not recalled."""
        raise NotImplementedError

    def vectors_to_cache(self, outputs: Sequence[Outputs], plan: PlanT) -> dict[str, bytes]:
        """Return the vectors of texts that these outputs hold, in bytes of the task's own."""
        raise NotImplementedError


class TwoStage(Generic[PlanT]):
    """A bundle may have to see an item before it can be prepared: then a job by itself comes first."""

    def needs_first_stage(self, item: Item, spec: BundleSpec) -> bool:
        raise NotImplementedError

    def prepare_first_stage(self, item: Item, plan: PlanT, spec: BundleSpec, decoder: ImageDecoder) -> Arrays:
        """Return the arrays of that job. Runs, and raises, as `prepare` does."""
        raise NotImplementedError

    def parts_from_first_stage(self, outputs: Outputs) -> Item:
        """Return the parts that the outputs of that job add to the item."""
        raise NotImplementedError


class KeepsScenes(Generic[OptionsT, PlanT]):
    """Some outputs are kept as a scene, which can be queried again; where it is kept, `present` finds an output `kept`."""

    kept_arrays: ClassVar[tuple[str, ...]]

    def scene_of(self, plan: PlanT) -> str:
        """Return the name under which `kept_arrays` are kept."""
        raise NotImplementedError

    def with_partition(self, plan: PlanT, partition: str) -> PlanT:
        """Return the plan once it is known where it will be queued: ids of scenes begin with the partition."""
        raise NotImplementedError

    def plan_followup(self, options: OptionsT, spec: BundleSpec, scene: str) -> PlanT:
        """Return the plan of a job that queries a kept scene. Raises InvalidOption."""
        raise NotImplementedError

    def prepare_followup(self, kept: Outputs, plan: PlanT, limits: MediaLimits) -> Arrays:
        """`kept_arrays` of an earlier job → the arrays of one that queries it again. Raises InvalidOption."""
        raise NotImplementedError


class PresentsElsewhere(Generic[PlanT]):
    """Presenting takes memory or time. Without: in a thread if the task takes steps, else in the event loop."""

    def memory_to_present(self, outputs: Sequence[Outputs], plan: PlanT) -> int:
        """Return the bytes that `present` and `to_tensors` take at most besides the outputs. They wait until preparing and presenting
        leave so much of the memory for both together. Raises what `present` does."""
        return 0

    def present_in_thread(self, outputs: Sequence[Outputs], plan: PlanT) -> bool:
        """Return whether `present` and `to_tensors`, or the JSON of their results, take so long that they run in a thread."""
        return isinstance(self, TakesSteps)

    def present_in_subprocess(self, plan: PlanT, media_type: str) -> bool:
        """Return whether `present` takes so long, or so much memory, that it runs in a child process."""
        return False


class OffersTensors(Generic[PlanT]):
    """Served in the Open Inference Protocol, too."""

    without_tensor: ClassVar[tuple[str, ...]] = ()
    """Options, off by default, whose answer has no tensor: they are refused there."""

    def tensors(self, spec: BundleSpec) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the inputs (named like the parts) and outputs."""
        raise NotImplementedError

    def to_tensors(self, outputs: Sequence[Outputs], plan: PlanT, spec: BundleSpec) -> tuple[Arrays, dict[str, Any]]:
        """The outputs of all jobs → arrays named like the output tensors, one row per job, and the parameters of the response."""
        raise NotImplementedError


USUAL_BATCHING = ControlsBatching[Any]()


def batching(task: Task[Any, Any]) -> ControlsBatching[Any]:
    return task if isinstance(task, ControlsBatching) else USUAL_BATCHING


def plan_type(task: Task[Any, Any]) -> type[msgspec.Struct]:
    kind: type[msgspec.Struct] = task.plan_type if isinstance(task, Plans) else task.options
    return kind


def plan_of(task: Task[Any, Any], options: msgspec.Struct, spec: BundleSpec) -> msgspec.Struct:
    """Return a task's plan for one bundle. Raises InvalidOption."""
    plan: msgspec.Struct = task.plan(options, spec) if isinstance(task, Plans) else options
    return plan


def takes(task: Task[Any, Any], spec: BundleSpec) -> tuple[Part, ...]:
    """Return the parts that one bundle takes."""
    return task.takes(spec) if isinstance(task, SelectsBundles) else task.parts


def media_types(task: Task[Any, Any]) -> tuple[str, ...]:
    return task.media_types if isinstance(task, OffersFiles) else (JSON,)


def offers(task: Task[Any, Any], request: msgspec.Struct) -> tuple[str, ...]:
    """Return the media types that the answer to this request, its options or its plan, may have."""
    return task.offers(request) if isinstance(task, OffersFiles) else (JSON,)


def in_thread(task: Task[Any, Any], outputs: Sequence[Outputs], plan: msgspec.Struct) -> bool:
    """Return whether the answer is made in a thread."""
    return task.present_in_thread(outputs, plan) if isinstance(task, PresentsElsewhere) else isinstance(task, TakesSteps)
