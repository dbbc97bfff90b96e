"""`Task.present` in a child process: the message that goes there, and the answer that comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from models.bundle import BundleSpec
from server.processes.sandbox_process import Sandbox
from server.queue.messages import Array, from_numpy, to_numpy
from server.tasks.base import FileAnswer, Outputs, Task, plan_type
from server.tasks.registry import TASKS

MEMORY_BYTES = 6 * 2**30
"""Address space of the child, of which its libraries take one."""
SECONDS = 120.0
"""Longest time of one answer."""


class Presentation(msgspec.Struct, frozen=True):
    """Arguments of `Task.present`."""

    task: str
    plan: bytes
    spec: bytes
    media_type: str
    outputs: list[dict[str, Array]]


def presenter() -> Sandbox:
    return Sandbox(f"{__name__}:present", memory_bytes=MEMORY_BYTES, seconds=SECONDS)


def request(task: Task[Any, Any], outputs: Sequence[Outputs], plan: msgspec.Struct, spec: BundleSpec, media_type: str) -> bytes:
    arrays = list(map(from_numpy, outputs))
    return msgspec.msgpack.encode(Presentation(task.name, msgspec.msgpack.encode(plan), spec.to_bytes(), media_type, arrays))


def present(message: bytes) -> bytes:
    """Return the answer to a message. Runs in the child process."""
    request = msgspec.msgpack.decode(message, type=Presentation)
    task = TASKS[request.task]
    outputs: list[Mapping[str, Any]] = list(map(to_numpy, request.outputs))
    plan = msgspec.msgpack.decode(request.plan, type=plan_type(task))
    answer = task.present(outputs, plan, BundleSpec.from_bytes(request.spec), request.media_type)
    return msgspec.msgpack.encode((isinstance(answer, FileAnswer), answer))


def answer(task: Task[Any, Any], message: bytes) -> msgspec.Struct | FileAnswer:
    """Return the answer that `present` encoded."""
    is_file, content = msgspec.msgpack.decode(message, type=tuple[bool, msgspec.Raw])
    answer: msgspec.Struct | FileAnswer = msgspec.msgpack.decode(content, type=FileAnswer if is_file else task.answer)
    return answer
