"""The tasks that this service answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.tasks.actions import Actions
from server.tasks.base import Task
from server.tasks.classify import Classify
from server.tasks.embed import Embed
from server.tasks.inpaint import Inpaint
from server.tasks.reconstruct import Reconstruct
from server.tasks.zero_shot import ZeroShot

TASKS: Mapping[str, Task[Any, Any]] = {
    "classify": Classify(),
    "actions": Actions(),
    "inpaint": Inpaint(),
    "reconstruct": Reconstruct(),
    "zero-shot": ZeroShot(),
    "embed": Embed(),
}


def main_task(bundle_task: str) -> Task[Any, Any] | None:
    """The task of that name, or the first that serves bundles of it; None: nothing does yet."""
    return TASKS.get(bundle_task) or next((task for task in TASKS.values() if task.serves(bundle_task)), None)
