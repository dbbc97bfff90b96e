"""The tasks that this service answers, the routes that they share, and the kinds of requests that have a default bundle each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.bundle import BundleSpec
from server.tasks.actions import Actions
from server.tasks.base import Task
from server.tasks.classify.clips import ClassifyClips
from server.tasks.classify.images import Classify
from server.tasks.embedding.embed import Embed
from server.tasks.embedding.zero_shot import ZeroShot
from server.tasks.inpaint.task import Inpaint
from server.tasks.reconstruct.task import Reconstruct

TASKS: Mapping[str, Task[Any, Any]] = {
    "classify": Classify(),
    "classify-clips": ClassifyClips(),
    "actions": Actions(),
    "inpaint": Inpaint(),
    "reconstruct": Reconstruct(),
    "zero-shot": ZeroShot(),
    "embed": Embed(),
}


ROUTES: Mapping[str, tuple[Task[Any, Any], ...]] = {
    task.name: (task, *(other for other in TASKS.values() if other.route == task.name)) for task in TASKS.values() if not task.route
}
"""Name of a route → the tasks behind it, the one of its name first."""


@dataclass(frozen=True)
class Default:
    """A kind of request that has a default bundle of its own."""

    task: Task[Any, Any]
    parts: frozenset[str]
    """Empty: whatever parts come."""


DEFAULTS: Mapping[str, Default] = {
    task.default_name(parts): Default(task, frozenset(parts)) for task in TASKS.values() for parts in task.part_sets
}


def main_task(spec: BundleSpec) -> Task[Any, Any] | None:
    """The task of the bundle's own, or the first that serves it; None: nothing does yet."""
    own = TASKS.get(spec.task)
    return own if own is not None and own.serves(spec) else next((task for task in TASKS.values() if task.serves(spec)), None)
