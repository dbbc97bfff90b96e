"""The names that a task's route understands, and the plan that a task makes of them for one bundle."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta

from models.bundle import BundleSpec
from server.http.problems import Kind, Problem
from server.queue.messages import Priority
from server.quote import MAX_QUOTED_CHARS
from server.tasks.base import RequestPart, Task
from server.tasks.options import InvalidOption, Option, RequestOptions, option_rows

FETCHED = ("image", "video", "audio")
"""Parts that may be named by URL."""


class CommonOptions(RequestOptions, frozen=True, kw_only=True):
    """Options of every task's route besides the task's own."""

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
class Planned:
    """A task's plan for one bundle: all that it takes to present outputs."""

    task: Task[Any, Any]
    spec: BundleSpec
    plan: msgspec.Struct


@dataclass(frozen=True)
class TaskInterface:
    """The names of one route. A repeated name has a plural in JSON, `image` and `images`."""

    tasks: tuple[Task[Any, Any], ...]
    """Those that share the route; the parts of a request tell which one is meant."""
    parts: Mapping[str, RequestPart]
    options: Mapping[str, Option]
    urls: Mapping[str, str]
    """Name of a field that holds a part's URL → the part."""
    plurals: Mapping[str, str]
    """Plural → name."""

    @staticmethod
    def of(*tasks: Task[Any, Any]) -> TaskInterface:
        """Where several tasks share a route, each needs its own parts, and the route none of them."""
        model, priority = option_rows(CommonOptions)
        options = {row.name: row for row in (model, *option_rows(tasks[0].options), priority)}
        parts = {part.name: part if len(tasks) == 1 else replace(part, required=False) for task in tasks for part in task.parts}
        urls = {f"{name}_url": name for name in FETCHED if name in parts}
        names = [name for table in (parts, options) for name, row in table.items() if row.repeated]
        names += [name for name, part in urls.items() if parts[part].repeated]
        return TaskInterface(tasks, parts, options, urls, {f"{name}s": name for name in names})

    @property
    def task(self) -> Task[Any, Any]:
        """The one whose name the route has."""
        return self.tasks[0]

    def meant(self, parts: Collection[str]) -> Task[Any, Any] | None:
        """The task that takes these parts; None: none takes all of them."""
        return next((task for task in self.tasks if {part.name for part in task.parts}.issuperset(parts)), None)

    def check_name(self, name: str) -> None:
        """Raises Problem (422) for a name that is no part, no URL of one and no option."""
        if name not in self.parts and name not in self.options and name not in self.urls:
            raise self.unknown(name)

    def unknown(self, name: str) -> Problem:
        parts = ", ".join(f"`{part}`" for part in self.parts)
        return Problem(
            Kind.INVALID_OPTION, f"unknown; the parts are {parts}, the options are {', '.join(self.options)}", name[:MAX_QUOTED_CHARS]
        )

    def read_query(self, query: bytes) -> dict[str, list[object]]:
        """The options in the URL. Raises Problem: 422 for a name that is none, 400 for what is not UTF-8."""
        options: dict[str, list[object]] = {}
        for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="surrogateescape"):
            if name not in self.options:
                raise self.unknown(name.encode(errors="replace").decode())
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise Problem(Kind.INVALID_BODY, "the option in the URL is not UTF-8", name)
            options.setdefault(name, []).append(value)
        return options

    def read_options(
        self, query: Mapping[str, Sequence[object]], body: Mapping[str, Sequence[object]]
    ) -> tuple[CommonOptions, RequestOptions]:
        """The common options and the task's, of which it has the names only. Raises Problem (422) for one that is given both in the URL and
        in the body, or is not understood."""
        for name in query.keys() & body.keys():
            raise Problem(Kind.INVALID_OPTION, "given both in the URL and in the body", name)
        common: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for given in (query, body):
            for name, values in given.items():
                try:
                    (common if name in CommonOptions.__struct_fields__ else own)[name] = self.options[name].read(values)
                except InvalidOption as error:
                    raise Problem(Kind.INVALID_OPTION, str(error), name) from error
        return CommonOptions(**common), self.task.options(**own)
