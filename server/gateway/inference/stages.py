"""The names that a route understands, and the values that a request becomes: parsed, resolved for a bundle, prepared for the queue.

None of the values holds what the next stage does not need, so that bodies are freed as soon as their arrays exist.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta

from server.http.problems import Problem, ProblemKind
from server.queue.messages import Priority
from server.quote import MAX_QUOTED_CHARS
from server.tasks.base import JSON, Arrays, Item, Outputs, RecallsTexts, RequestPart, Task, media_types, offered_media_types
from server.tasks.options import InvalidOption, Option, RequestOptions, option_rows

if TYPE_CHECKING:
    from models.bundle import BundleSpec
    from server.gateway.inference.admission import RequestContext
    from server.queue.messages import QueuedJob

FETCHABLE_PARTS = ("image", "video", "audio")
"""Parts that may be given by URL."""


class CommonOptions(RequestOptions, frozen=True, kw_only=True):
    """Options of every task's route in addition to the task's own."""

    model: Annotated[
        str | None,
        Meta(
            max_length=1024,
            description="Bundle.",
            extra={
                "values": "`name` or `name@version`; without a version the newest that is ready",
                "default": "the service's default model",
            },
        ),
    ] = None
    priority: Annotated[Priority | None, Meta(description="Who is served first.", extra={"default": "normal"})] = None


@dataclass(frozen=True)
class TaskInterface:
    """The names of one route. A repeated name has a plural in JSON, `image` and `images`."""

    tasks: tuple[Task[Any, Any], ...]
    """Tasks that share the route; the parts of a request choose one of them."""
    parts: Mapping[str, RequestPart]
    options: Mapping[str, Option]
    urls: Mapping[str, str]
    """Name of a field that holds a part's URL → the part."""
    plurals: Mapping[str, str]

    @staticmethod
    def from_tasks(*tasks: Task[Any, Any]) -> TaskInterface:
        """Return the interface of a route. If several tasks share it, each needs its own parts, and the route none of them."""
        model, priority = option_rows(CommonOptions)
        options = {row.name: row for row in (model, *option_rows(tasks[0].options), priority)}
        parts = {part.name: part if len(tasks) == 1 else replace(part, required=False) for task in tasks for part in task.parts}
        urls = {f"{name}_url": name for name in FETCHABLE_PARTS if name in parts}
        names = [name for table in (parts, options) for name, row in table.items() if row.repeated]
        names += [name for name, part in urls.items() if parts[part].repeated]
        return TaskInterface(tasks, parts, options, urls, {f"{name}s": name for name in names})

    @property
    def task(self) -> Task[Any, Any]:
        """The task that the route is named after."""
        return self.tasks[0]

    def task_for(self, parts: Collection[str]) -> Task[Any, Any] | None:
        """Return the task that takes these parts. None: no task takes all of them."""
        return next((task for task in self.tasks if {part.name for part in task.parts}.issuperset(parts)), None)

    def find_repeated(self, parts: Iterable[str]) -> str | None:
        """Return the part of which each element is an item of its own, if there is one."""
        return next((name for name in parts if self.parts[name].repeated), None)

    def items(self, parts: Mapping[str, Sequence[bytes]]) -> list[Item]:
        """Return the items, which are prepared separately: each element of a repeated part with the parts that are given once, or all
        texts as JSON."""
        once = {name: elements[0] for name, elements in parts.items() if not self.parts[name].repeated}
        items = list[Item]()
        for name, elements in parts.items():
            if self.parts[name].is_one_item:
                items.append({name: msgspec.json.encode([text.decode() for text in elements])})
            elif self.parts[name].repeated:
                items += [{name: content, **once} for content in elements]
        return items or [once]

    @cached_property
    def options_in_url(self) -> Callable[[bytes], tuple[CommonOptions, RequestOptions]]:
        """Reads options from a query alone. Raises Problem."""
        return lru_cache(maxsize=256)(lambda query: self.read_options(self.read_query(query), {}))

    def offered_media_types(self, query: bytes) -> tuple[str, ...]:
        """Return the media types of the answer, if only the URL has options. Invalid options are refused once the body has been read."""
        try:
            _, options = self.options_in_url(query)
        except Problem:
            return media_types(self.task)
        return offered_media_types(self.task, options)

    def check_name(self, name: str) -> None:
        """Refuse a name that is neither a part, nor a URL of one, nor an option. Raises Problem (422)."""
        if name not in self.parts and name not in self.options and name not in self.urls:
            raise self.unknown(name)

    def unknown(self, name: str) -> Problem:
        parts = ", ".join(f"`{part}`" for part in self.parts)
        return Problem(
            ProblemKind.INVALID_OPTION,
            f"unknown; the parts are {parts}, the options are {', '.join(self.options)}",
            name[:MAX_QUOTED_CHARS],
        )

    def read_query(self, query: bytes) -> dict[str, list[object]]:
        """Return the options in the URL. Raises Problem: 422 for an unknown name, 400 for what is not UTF-8."""
        options: dict[str, list[object]] = {}
        for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="surrogateescape"):
            if name not in self.options:
                raise self.unknown(name.encode(errors="replace").decode())
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise Problem(ProblemKind.INVALID_BODY, "the option in the URL is not UTF-8", name)
            options.setdefault(name, []).append(value)
        return options

    def read_options(
        self, query: Mapping[str, Sequence[object]], body: Mapping[str, Sequence[object]]
    ) -> tuple[CommonOptions, RequestOptions]:
        """Return the common options and the task's, whose names must be known. Raises Problem (422) for an option that is invalid, or given
        both in the URL and in the body."""
        for name in query.keys() & body.keys():
            raise Problem(ProblemKind.INVALID_OPTION, "given both in the URL and in the body", name)
        common: dict[str, Any] = {}
        task_options: dict[str, Any] = {}
        for source in (query, body):
            for name, values in source.items():
                try:
                    (common if name in CommonOptions.__struct_fields__ else task_options)[name] = self.options[name].read(values)
                except InvalidOption as error:
                    raise Problem(ProblemKind.INVALID_OPTION, str(error), name) from error
        return CommonOptions(**common), self.task.options(**task_options)


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
