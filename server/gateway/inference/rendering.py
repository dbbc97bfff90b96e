"""Outputs of a task → its answer → a response: here, in a thread or in a child process, as the task says. Arrays that are kept of it can be
asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np
from starlette.responses import Response

from server.arrays import Array
from server.gateway.fair_executor import FairExecutor
from server.gateway.inference import present_task
from server.gateway.inference.error_mapping import of_refusal
from server.gateway.inference.runner import Timing
from server.gateway.inference.task_interface import Planned
from server.http.json_outline import BASE64_PIECE, to_base64
from server.http.problems import Kind, Problem
from server.media.limits import MediaError
from server.media.memory_budget import MemoryBudget
from server.processes.sandbox_process import SandboxError
from server.queue.gateway.scene_store import Scene, SceneStore
from server.tasks.base import JSON, Arrays, FileAnswer, Outputs, Task
from server.tasks.capabilities import EchoesArrays, KeepsScenes, OffersTensors, PresentsElsewhere, is_presented_in_thread
from server.tasks.options import InvalidOption
from server.tasks.registry import ROUTES
from server.telemetry import logs

SMALL_BYTES = 1024
"""Size up to which arrays that are kept stay with the answer, too."""

T = TypeVar("T")

log = logs.get(__name__)


class Presenting:
    """For one event loop."""

    def __init__(self, scenes: SceneStore, turns: FairExecutor, budget: MemoryBudget) -> None:
        """budget: of memory, for preparing and presenting together."""
        self._budget = budget
        self._scenes = scenes
        self._turns = turns
        self._presenter = present_task.presenter()
        self._turns_apart = FairExecutor(1, together=1, never_long=True)

    async def respond(
        self,
        planned: Planned,
        outputs: Sequence[Outputs],
        timing: Timing,
        media_type: str,
        *,
        client: str,
        key_name: str,
        request_id: str,
        at_once: bool = True,
    ) -> Response:
        """key_name: of the API key that alone a scene which is kept will answer. at_once: in the event loop, where the task's answers are
        made quickly. Raises Problem: what the task refuses, 500 where the child fails."""
        task = planned.task
        if isinstance(task, KeepsScenes):
            outputs = await self._keep(planned, outputs, key_name)
        aside = is_presented_in_thread(task, outputs, planned.plan)
        if isinstance(task, PresentsElsewhere) and task.present_in_subprocess(planned.plan, media_type):
            presented = await self._present_apart(planned, outputs, media_type, client, request_id)
        else:
            try:
                if at_once and not aside:
                    presented = task.present(outputs, planned.plan, planned.spec, media_type)
                else:
                    present = partial(self._within_budget, planned, outputs, task.present, planned.spec, media_type)
                    presented = await self._turns.run(client, present)
            except (InvalidOption, MediaError) as refused:
                raise of_refusal(refused) from refused
        respond = partial(_response, planned, presented, timing, media_type, request_id, in_pieces=aside)
        return await self._turns.run(client, respond) if aside else respond()

    async def to_tensors(self, planned: Planned, outputs: Sequence[Outputs], *, client: str) -> tuple[Arrays, dict[str, Any]]:
        """The answer in the Open Inference Protocol: tensors, and parameters that tell of it. Raises Problem: what the task refuses."""
        assert isinstance(planned.task, OffersTensors)
        make = partial(self._within_budget, planned, outputs, planned.task.to_tensors, planned.spec)
        try:
            return await self.aside(planned, outputs, make, client=client)
        except (InvalidOption, MediaError) as refused:
            raise of_refusal(refused) from refused

    def _within_budget(self, planned: Planned, outputs: Sequence[Outputs], work: Callable[..., T], *arguments: Any) -> T:
        task = planned.task
        with self._budget.reserve(task.memory_to_present(outputs, planned.plan) if isinstance(task, PresentsElsewhere) else 0):
            return work(outputs, planned.plan, *arguments)

    async def aside(self, planned: Planned, outputs: Sequence[Outputs], work: Callable[[], T], *, client: str) -> T:
        """The result of `work` on an answer: in a thread where that takes long."""
        return await self._turns.run(client, work) if is_presented_in_thread(planned.task, outputs, planned.plan) else work()

    async def close(self) -> None:
        self._turns_apart.close()
        await asyncio.to_thread(self._presenter.close)

    async def _keep(self, planned: Planned, outputs: Sequence[Outputs], key_name: str) -> list[Outputs]:
        """The outputs without what is large and serves the next question alone; with `kept` where that can be asked."""
        task, shown = planned.task, list[Outputs]()
        assert isinstance(task, KeepsScenes)
        echoed = task.echoed_arrays if isinstance(task, EchoesArrays) else ()
        for one in outputs:
            kept = {name: Array.from_numpy(one[name]) for name in task.kept_arrays if name in one}
            there = len(kept) < len(task.kept_arrays) or await self._scenes.keep(
                task.scene_of(planned.plan), Scene(task=task.name, digest=planned.spec.digest(), arrays=kept, key_name=key_name)
            )
            needed = {name for name, array in one.items() if array.nbytes <= SMALL_BYTES} | set(echoed)
            rest = {name: array for name, array in one.items() if name not in task.kept_arrays or name in needed}
            shown.append({**rest, "kept": np.array(1)} if there else rest)
        return shown

    async def _present_apart(
        self, planned: Planned, outputs: Sequence[Outputs], media_type: str, client: str, request_id: str
    ) -> msgspec.Struct | FileAnswer:
        task = planned.task
        message = await self._turns.run(client, partial(present_task.request, task, outputs, planned.plan, planned.spec, media_type))
        try:
            answer = await self._turns_apart.run(client, partial(self._presenter.run, message))
        except SandboxError as failure:
            log.error("presenting failed", task=task.name, request_id=request_id, reason=str(failure))
            raise Problem(Kind.INTERNAL, f"the answer could not be made: {failure}") from failure
        return present_task.answer(task, answer)


def _response(
    planned: Planned, presented: msgspec.Struct | FileAnswer, timing: Timing, media_type: str, request_id: str, *, in_pieces: bool
) -> Response:
    """JSON with what every answer has around the task's own fields, or a file."""
    task, spec = planned.task, planned.spec
    if isinstance(presented, FileAnswer):
        spent = ((name, value) for name, value in msgspec.structs.asdict(timing).items() if name.endswith("_ms"))
        durations = ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in spent)
        headers = {"X-Model": spec.id, "Server-Timing": durations, **presented.headers}
        return Response(presented.content, headers=headers, media_type=presented.media_type or media_type)
    fields = msgspec.structs.astuple(_in_pieces(presented) if in_pieces else presented)
    content = msgspec.json.encode(ANSWERS[task.name](request_id, spec.name, spec.version, *fields, timing, spec.note or msgspec.UNSET))
    return Response(content, media_type=JSON)


def _answer_of(task: Task[Any, Any]) -> type[msgspec.Struct]:
    """The JSON answer of a task: its own fields between those that every answer has. `note` is there if the bundle has one."""
    own = [(field.name, field.type) for field in msgspec.structs.fields(task.answer)]
    name = "".join(word.capitalize() for word in task.name.split("-"))
    fields: list[Any] = [("id", str), ("model", str), ("version", str), *own, ("timing", Timing)]
    fields.append(("note", str | msgspec.UnsetType, msgspec.UNSET))
    return msgspec.defstruct(f"{name}Response", fields, frozen=True, namespace={"__doc__": task.answer.__doc__})


def _in_pieces(answer: msgspec.Struct) -> msgspec.Struct:
    """The same answer, its large files and the rows of its tables as JSON already: all at once they would hold up every other thread."""
    light: dict[str, object] = {}
    for name in answer.__struct_fields__:
        value = getattr(answer, name)
        if isinstance(value, bytes) and len(value) > BASE64_PIECE:
            light[name] = msgspec.Raw(b'"%b"' % to_base64(value))
        elif isinstance(value, list) and value and isinstance(value[0], msgspec.Struct):
            light[name] = list(map(_in_pieces, value))
        elif isinstance(value, list) and value and isinstance(value[0], list):
            light[name] = [msgspec.Raw(msgspec.json.encode(row)) for row in value]
    return msgspec.structs.replace(answer, **light) if light else answer


ANSWERS = {task.name: answer for tasks in ROUTES.values() for answer in [_answer_of(tasks[0])] for task in tasks}
"""Name of a task → its answer in JSON, which all tasks of a route share."""
