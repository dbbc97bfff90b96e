"""The values that a request becomes on its way to an answer: parsed, resolved for a bundle, prepared for the queue.

None holds what the next stage does not need, so that bodies are freed as soon as their arrays exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from server.tasks.base import JSON, Arrays, Item, Outputs, RecallsTexts, Task
from server.tasks.options import RequestOptions

if TYPE_CHECKING:
    from models.bundle import BundleSpec
    from server.gateway.inference.admission import RequestContext
    from server.gateway.inference.task_interface import CommonOptions, TaskInterface
    from server.queue.messages import Priority, QueuedJob


class ParsedRequest(msgspec.Struct, frozen=True):
    """The contents of a request: encoded parts in their order, and its options."""

    context: RequestContext
    interface: TaskInterface
    common: CommonOptions
    options: RequestOptions
    parts: Mapping[str, Sequence[bytes]]
    urls: Mapping[str, Sequence[str]] = {}
    """URLs by part, which has no content yet."""
    media_type: str = JSON
    is_raw_body: bool = False
    """Whether its one part was the whole body, which does not name it."""
    fingerprint: str = ""
    """Hash of what was sent, of an asynchronous request with an Idempotency-Key."""


class TaskPlan(msgspec.Struct, frozen=True):
    """A task's plan for one bundle: all that is needed to present outputs."""

    task: Task[Any, Any]
    spec: BundleSpec
    plan: msgspec.Struct


class ResolvedRequest(TaskPlan, frozen=True):
    """A request for one bundle."""

    context: RequestContext
    part: str
    """The part that errors name."""
    priority: Priority
    items: Sequence[Item] = ()
    scene: Arrays | None = None
    """Arrays of a job that queries a kept scene. None: the items are prepared."""
    media_type: str = JSON
    fingerprint: str = ""


class PreparedRequest(TaskPlan, frozen=True):
    """A request whose jobs can be queued."""

    context: RequestContext
    part: str
    priority: Priority
    media_type: str
    fingerprint: str
    items: int
    jobs: list[QueuedJob]
    """Jobs of the items in their order, then the job of the request's texts."""
    fields: Sequence[str]
    """Names of what each job was made of, for errors."""
    echoes: Sequence[Outputs]
    """Arrays of each job that presenting needs again."""
    progress_total: tuple[int, str]
    prepare_s: float
    prepared_at: float
    """Seconds of `time.perf_counter()`."""


class Timing(msgspec.Struct, frozen=True):
    """Durations of a request's slowest item in milliseconds; `batch_size` counts the items that shared its batch."""

    prepare_ms: float
    queue_ms: float
    batch_wait_ms: float
    inference_ms: float
    total_ms: float
    batch_size: int


class AnsweredRequest(TaskPlan, frozen=True):
    """The outputs of every job of a request, in the order of its items, and who reads the answer."""

    outputs: Sequence[Outputs]
    timing: Timing
    media_type: str
    client: str
    key_name: str
    """Name of the API key, which alone may query a scene that is kept."""
    request_id: str
    is_large: bool = False
    """Whether the stored outputs are too large to present them in the event loop."""


def item_field(name: str, index: int, count: int) -> str:
    """Return the name of one of several elements of a part, for errors."""
    return name if count == 1 else f"{name}[{index}]"


def job_field(task: Task[Any, Any], part: str, index: int, items: int) -> str:
    """Return the name of what a job was made of, for errors. index: of its item; jobs of the texts follow those of all items."""
    if index < items:
        return item_field(part, index, items)
    return task.texts_option if isinstance(task, RecallsTexts) else part
