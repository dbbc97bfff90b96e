"""The tasks that this service answers, the routes that they share, and the kinds of requests that have a default bundle each."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from models.bundle import BundleSpec
from models.registry import TASK_GROUP, ExtensionError, architectures, extensions
from server.tasks.actions import ActionsTask
from server.tasks.base import SelectsBundles, Task
from server.tasks.classify.clips import ClassifyClipsTask
from server.tasks.classify.images import ClassifyTask
from server.tasks.embedding.embed import EmbedTask
from server.tasks.embedding.zero_shot import ZeroShotTask
from server.tasks.inpaint.task import InpaintTask
from server.tasks.reconstruct.task import ReconstructTask

NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
OTHER_ROUTES = frozenset({"embeddings", "jobs", "models", "scenes", "status"})
"""Names of routes below `/v1` that are not tasks."""


def _with_extensions(ours: Mapping[str, Task[Any, Any]]) -> Mapping[str, Task[Any, Any]]:
    """Add the tasks of installed packages. Raises ExtensionError."""
    tasks = dict(ours)
    for extension in extensions(TASK_GROUP):
        task = extension.value() if isinstance(extension.value, type) else extension.value
        if not isinstance(task, Task):
            raise ExtensionError(f"{extension}: names a {type(task).__name__}, not an opsin.extending.Task")
        if task.name in tasks or task.name in OTHER_ROUTES:
            raise ExtensionError(f"{extension}: /v1/{task.name} exists already")
        if not NAME.fullmatch(task.name):
            raise ExtensionError(f"{extension}: the name {task.name!r} is not of small letters, digits and hyphens")
        tasks[task.name] = task
    return tasks


TASKS: Mapping[str, Task[Any, Any]] = _with_extensions(
    {
        "classify": ClassifyTask(),
        "classify-clips": ClassifyClipsTask(),
        "actions": ActionsTask(),
        "inpaint": InpaintTask(),
        "reconstruct": ReconstructTask(),
        "zero-shot": ZeroShotTask(),
        "embed": EmbedTask(),
    }
)


def route_name(task: Task[Any, Any]) -> str:
    """Return the name of the route that answers for a task."""
    return (task.route if isinstance(task, SelectsBundles) else "") or task.name


ROUTES: Mapping[str, tuple[Task[Any, Any], ...]] = {
    task.name: (task, *(other for other in TASKS.values() if other is not task and route_name(other) == task.name))
    for task in TASKS.values()
    if route_name(task) == task.name
}
"""Tasks by the name of their route, the one of that name first."""


@dataclass(frozen=True)
class RequestKind:
    """A kind of request that has a default bundle of its own."""

    task: Task[Any, Any]
    parts: frozenset[str]
    """Empty if any parts will do."""


def default_name(task: Task[Any, Any], parts: Collection[str]) -> str:
    """Return the name under which DEFAULTS and `OPSIN_DEFAULT_MODELS` have the default bundle for requests with these parts."""
    return "-".join((route_name(task), *(sorted(parts) if part_sets(task) != ((),) else ())))


def part_sets(task: Task[Any, Any]) -> tuple[tuple[str, ...], ...]:
    return task.part_sets if isinstance(task, SelectsBundles) else ((),)


REQUEST_KINDS: Mapping[str, RequestKind] = {
    default_name(task, parts): RequestKind(task, frozenset(parts)) for task in TASKS.values() for parts in part_sets(task)
}


def serves(task: Task[Any, Any], spec: BundleSpec) -> bool:
    """Return whether a task serves a bundle: one of its `bundle_tasks`, or of another `task` if the bundle answers on the route that it
    shares and its architecture can be queried, as for the vectors of MAE's autoencoders but not of MAE-ST's."""
    bundle_tasks, route = (task.bundle_tasks, task.route) if isinstance(task, SelectsBundles) else ((), "")
    if spec.task not in (bundle_tasks or (task.name,)) or spec.route != (route or spec.task):
        return False
    architecture = architectures().get(spec.architecture)
    return spec.task == route_name(task) or architecture is None or architecture.serves(spec.task)


def main_task(spec: BundleSpec) -> Task[Any, Any] | None:
    """Return the task of the bundle's own name, or the first that serves it. None if there is none."""
    named = TASKS.get(spec.task)
    return named if named is not None and serves(named, spec) else next((task for task in TASKS.values() if serves(task, spec)), None)
