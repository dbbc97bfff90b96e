"""Outputs of a task → its answer: here, in a thread or in a child process, as the task says; and what is kept of it, to be asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np

from models.bundle import BundleSpec
from server.arrays import Array
from server.gateway.failures import of_refusal
from server.gateway.problems import Kind, Problem
from server.gateway.turns import Turns
from server.media.limits import MediaError
from server.media.memory_budget import MemoryBudget
from server.queue.scenes import Scene, Scenes
from server.sandbox import presenting
from server.sandbox.child import WorkFailed
from server.tasks.base import Arrays, File, Outputs, Task
from server.tasks.options import InvalidOption
from server.telemetry import logs

SMALL_BYTES = 1024
"""Of arrays that are kept and that the answer may need, too."""

T = TypeVar("T")

log = logs.get(__name__)


class Presenting:
    """For one event loop."""

    def __init__(self, scenes: Scenes, turns: Turns, budget: MemoryBudget) -> None:
        """budget: of memory, for preparing and presenting together."""
        self._budget = budget
        self._scenes = scenes
        self._turns = turns
        self._presenter = presenting.presenter()
        self._turns_apart = Turns(1, together=1)

    async def present(
        self,
        task: Task[Any, Any],
        outputs: Sequence[Outputs],
        plan: msgspec.Struct,
        spec: BundleSpec,
        media_type: str,
        *,
        client: str,
        request_id: str,
        at_once: bool = True,
    ) -> msgspec.Struct | File:
        """at_once: in the event loop, where the task's answers are made quickly. Raises Problem: what the task refuses, 500 where the child
        fails."""
        if task.kept_arrays:
            outputs = await self._keep(task, outputs, plan, spec)
        if task.presents_apart(plan, media_type):
            return await self._present_apart(task, outputs, plan, spec, media_type, client, request_id)
        try:
            if at_once and not task.takes_long:
                return task.present(outputs, plan, spec, media_type)
            return await self._turns.run(client, partial(self._within_budget, task, outputs, plan, task.present, spec, media_type))
        except (InvalidOption, MediaError) as refused:
            raise of_refusal(refused) from refused

    async def to_tensors(
        self, task: Task[Any, Any], outputs: Sequence[Outputs], plan: msgspec.Struct, spec: BundleSpec, *, client: str
    ) -> tuple[Arrays, dict[str, Any]]:
        """The answer in the Open Inference Protocol: tensors, and parameters that tell of it. Raises Problem: what the task refuses."""
        try:
            return await self.aside(task, partial(self._within_budget, task, outputs, plan, task.to_tensors, spec), client=client)
        except (InvalidOption, MediaError) as refused:
            raise of_refusal(refused) from refused

    def _within_budget(
        self, task: Task[Any, Any], outputs: Sequence[Outputs], plan: msgspec.Struct, work: Callable[..., T], *arguments: Any
    ) -> T:
        with self._budget.taken(task.memory_to_present(outputs, plan)):
            return work(outputs, plan, *arguments)

    async def aside(self, task: Task[Any, Any], work: Callable[[], T], *, client: str) -> T:
        """The result of `work` on an answer of the task: in a thread where these may be large."""
        return await self._turns.run(client, work) if task.takes_long else work()

    async def close(self) -> None:
        self._turns_apart.close()
        await asyncio.to_thread(self._presenter.close)

    async def _keep(self, task: Task[Any, Any], outputs: Sequence[Outputs], plan: msgspec.Struct, spec: BundleSpec) -> list[Outputs]:
        """Without what is large and serves the next question alone; with `kept` where that can be asked."""
        shown: list[Outputs] = []
        for one in outputs:
            kept = {name: Array.of(one[name]) for name in task.kept_arrays if name in one}
            there = len(kept) < len(task.kept_arrays) or await self._scenes.keep(
                task.scene_of(plan), Scene(task=task.name, digest=spec.digest(), arrays=kept)
            )
            needed = {name for name, array in one.items() if array.nbytes <= SMALL_BYTES} | set(task.echoed_arrays)
            rest = {name: array for name, array in one.items() if name not in task.kept_arrays or name in needed}
            shown.append({**rest, "kept": np.array(1)} if there else rest)
        return shown

    async def _present_apart(
        self,
        task: Task[Any, Any],
        outputs: Sequence[Outputs],
        plan: msgspec.Struct,
        spec: BundleSpec,
        media_type: str,
        client: str,
        request_id: str,
    ) -> msgspec.Struct | File:
        message = await self._turns.run(client, partial(presenting.request, task, outputs, plan, spec, media_type))
        try:
            answer = await self._turns_apart.run(client, partial(self._presenter.run, message))
        except WorkFailed as failure:
            log.error("presenting failed", task=task.name, request_id=request_id, reason=str(failure))
            raise Problem(Kind.INTERNAL, f"the answer could not be made: {failure}") from failure
        return presenting.answer(task, answer)
