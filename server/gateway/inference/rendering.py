"""Outputs of a task → its answer → a response: in the event loop, a thread or a child process, as the task says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np
from starlette.responses import Response

from server.gateway.fair_executor import FairExecutor
from server.gateway.inference import present_task
from server.gateway.inference.error_mapping import refusal_to_problem
from server.gateway.inference.stages import AnsweredRequest, Timing
from server.http.json_outline import BASE64_PIECE, to_base64
from server.http.problems import Problem, ProblemKind
from server.media.limits import MediaError
from server.media.memory_budget import MemoryBudget
from server.processes.sandbox_process import SandboxError
from server.queue.gateway.kept_values import Scene, SceneStore
from server.queue.messages import Array
from server.tasks import base
from server.tasks.base import JSON, Arrays, FileAnswer, Outputs
from server.tasks.options import InvalidOption
from server.tasks.registry import ROUTES
from server.telemetry import logs

MAX_INLINE_ARRAY_BYTES = 1024
"""Maximum size of arrays of a scene that stay in the answer, too."""

T = TypeVar("T")

log = logs.get(__name__)


class ResponseRenderer:
    """A renderer that turns outputs into responses: inline, in a thread or in a child process. Use it from one event loop."""

    def __init__(self, scenes: SceneStore, executor: FairExecutor, budget: MemoryBudget) -> None:
        """budget: memory for preparing and presenting together."""
        self._budget = budget
        self._scenes = scenes
        self._executor = executor
        self._child = present_task.presenter()
        self._child_executor = FairExecutor(1, max_concurrent=1, keep_priority=True)

    async def present(self, answered: AnsweredRequest) -> Response:
        """Return the response. Raises Problem: what the task refuses, 500 if the child fails."""
        task, client = answered.task, answered.client
        if isinstance(task, base.KeepsScenes):
            answered = await self._save_scenes(answered)
        is_slow = base.is_presented_in_thread(task, answered.outputs, answered.plan)
        if isinstance(task, base.PresentsElsewhere) and task.present_in_subprocess(answered.plan, answered.media_type):
            presented = await self._present_in_child(answered)
        else:
            try:
                if is_slow or answered.is_large:
                    presented = await self._executor.run(client, partial(self._within_budget, answered, task.present, answered.media_type))
                else:
                    presented = task.present(answered.outputs, answered.plan, answered.spec, answered.media_type)
            except (InvalidOption, MediaError) as error:
                raise refusal_to_problem(error) from error
        encode = partial(_encode, answered, presented, encode_in_chunks=is_slow)
        return await self._executor.run(client, encode) if is_slow else encode()

    async def to_tensors(self, answered: AnsweredRequest) -> tuple[Arrays, dict[str, Any]]:
        """Return the tensors of the Open Inference Protocol and the parameters that describe them. Raises Problem: what the task
        refuses."""
        assert isinstance(answered.task, base.OffersTensors)
        try:
            return await self.run_in_thread_if_slow(answered, partial(self._within_budget, answered, answered.task.to_tensors))
        except (InvalidOption, MediaError) as error:
            raise refusal_to_problem(error) from error

    def _within_budget(self, answered: AnsweredRequest, present: Callable[..., T], *arguments: Any) -> T:
        task, outputs, plan = answered.task, answered.outputs, answered.plan
        with self._budget.reserve(task.memory_to_present(outputs, plan) if isinstance(task, base.PresentsElsewhere) else 0):
            return present(outputs, plan, answered.spec, *arguments)

    async def run_in_thread_if_slow(self, answered: AnsweredRequest, work: Callable[[], T]) -> T:
        """Return the result of work on an answer."""
        is_slow = base.is_presented_in_thread(answered.task, answered.outputs, answered.plan)
        return await self._executor.run(answered.client, work) if is_slow else work()

    async def close(self) -> None:
        self._child_executor.close()
        await asyncio.to_thread(self._child.close)

    async def _save_scenes(self, answered: AnsweredRequest) -> AnsweredRequest:
        """Return the answer without large arrays that only a scene needs; with `kept` if the scene can be queried again."""
        task, outputs = answered.task, list[Outputs]()
        assert isinstance(task, base.KeepsScenes)
        echoed = task.echoed_arrays if isinstance(task, base.EchoesArrays) else ()
        for one in answered.outputs:
            arrays = {name: Array.from_numpy(one[name]) for name in task.kept_arrays if name in one}
            scene = Scene(task=task.name, digest=answered.spec.digest(), arrays=arrays, key_name=answered.key_name)
            is_kept = len(arrays) < len(task.kept_arrays) or await self._scenes.keep(task.scene_of(answered.plan), scene)
            needed = {name for name, array in one.items() if array.nbytes <= MAX_INLINE_ARRAY_BYTES} | set(echoed)
            rest = {name: array for name, array in one.items() if name not in task.kept_arrays or name in needed}
            outputs.append({**rest, "kept": np.array(1)} if is_kept else rest)
        return msgspec.structs.replace(answered, outputs=outputs)

    async def _present_in_child(self, answered: AnsweredRequest) -> msgspec.Struct | FileAnswer:
        task, client = answered.task, answered.client
        request = partial(present_task.request, task, answered.outputs, answered.plan, answered.spec, answered.media_type)
        message = await self._executor.run(client, request)
        try:
            answer = await self._child_executor.run(client, partial(self._child.run, message))
        except SandboxError as failure:
            log.error("presenting failed", task=task.name, request_id=answered.request_id, reason=str(failure))
            raise Problem(ProblemKind.INTERNAL, f"the answer could not be made: {failure}") from failure
        return present_task.answer(task, answer)


def _encode(answered: AnsweredRequest, presented: msgspec.Struct | FileAnswer, *, encode_in_chunks: bool) -> Response:
    """Encode an answer: a file, or JSON with the fields that every answer has around the task's own."""
    task, spec, timing = answered.task, answered.spec, answered.timing
    if isinstance(presented, FileAnswer):
        durations = ((name, value) for name, value in msgspec.structs.asdict(timing).items() if name.endswith("_ms"))
        server_timing = ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in durations)
        headers = {"X-Model": spec.id, "Server-Timing": server_timing, **presented.headers}
        return Response(presented.content, headers=headers, media_type=presented.media_type or answered.media_type)
    fields = msgspec.structs.astuple(_encode_large_fields(presented) if encode_in_chunks else presented)
    document = RESPONSE_TYPES[task.name](answered.request_id, spec.name, spec.version, *fields, timing, spec.note or msgspec.UNSET)
    return Response(msgspec.json.encode(document), media_type=JSON)


def _response_type(task: base.Task[Any, Any]) -> type[msgspec.Struct]:
    """Return the type of a task's JSON answer: its own fields between those of every answer. `note` is there if the bundle has one."""
    task_fields = [(field.name, field.type) for field in msgspec.structs.fields(task.answer)]
    name = "".join(word.capitalize() for word in task.name.split("-"))
    fields: list[Any] = [("id", str), ("model", str), ("version", str), *task_fields, ("timing", Timing)]
    fields.append(("note", str | msgspec.UnsetType, msgspec.UNSET))
    return msgspec.defstruct(f"{name}Response", fields, frozen=True, namespace={"__doc__": task.answer.__doc__})


def _encode_large_fields(answer: msgspec.Struct) -> msgspec.Struct:
    """Return the answer with large files and rows of tables encoded already: encoding all at once would block every other thread."""
    light: dict[str, object] = {}
    for name in answer.__struct_fields__:
        value = getattr(answer, name)
        if isinstance(value, bytes) and len(value) > BASE64_PIECE:
            light[name] = msgspec.Raw(b'"%b"' % to_base64(value))
        elif isinstance(value, list) and value and isinstance(value[0], msgspec.Struct):
            light[name] = list(map(_encode_large_fields, value))
        elif isinstance(value, list) and value and isinstance(value[0], list):
            light[name] = [msgspec.Raw(msgspec.json.encode(row)) for row in value]
    return msgspec.structs.replace(answer, **light) if light else answer


RESPONSE_TYPES = {task.name: answer for tasks in ROUTES.values() for answer in [_response_type(tasks[0])] for task in tasks}
"""Name of a task → its answer in JSON, which all tasks of a route share."""
