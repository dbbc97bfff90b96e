"""A task has few members, and what only some tasks do is inherited by name."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass

import pytest

from server.tasks import base
from server.tasks.base import Task
from server.tasks.classify.images import ClassifyTask
from server.tasks.registry import TASKS

OPTIONAL = {"example"}


def members(kind: type) -> set[str]:
    return {name for name in (*vars(kind), *inspect.get_annotations(kind)) if not name.startswith("_")}


def test_a_task_needs_eight_members() -> None:
    assert members(Task) - OPTIONAL == {"name", "parts", "options", "answer", "prepare", "present", "result_bound", "samples"}


def test_every_public_member_is_declared_once() -> None:
    kinds = [kind for kind in vars(base).values() if getattr(kind, "__module__", "") == base.__name__ and not is_dataclass(kind)]
    declared = [name for kind in filter(inspect.isclass, kinds) for name in members(kind) if (kind, name) != (base.SelectsBundles, "parts")]
    assert sorted(declared) == sorted(set(declared))
    for task in TASKS.values():
        assert {name for name in dir(task) if not name.startswith("_")} <= set(declared)


def test_a_member_that_nothing_declares_is_refused() -> None:
    with pytest.raises(TypeError, match="Misspelt: previews: declared neither by Task nor by a capability"):

        class Misspelt(ClassifyTask):
            def previews(self) -> None:
                """Would never be called."""


def test_member_of_foreign_capability_is_refused() -> None:
    with pytest.raises(TypeError, match="Forgotten: preview:"):

        class Forgotten(ClassifyTask):
            def preview(self) -> None:
                """Would never be called."""
