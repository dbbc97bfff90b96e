"""The tasks that this service answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.tasks.actions import Actions
from server.tasks.base import Task
from server.tasks.classify import Classify
from server.tasks.inpaint import Inpaint
from server.tasks.reconstruct import Reconstruct

TASKS: Mapping[str, Task[Any, Any]] = {
    "classify": Classify(),
    "actions": Actions(),
    "inpaint": Inpaint(),
    "reconstruct": Reconstruct(),
}
