"""Answers of a task as responses: JSON with what every answer has around the task's own fields, or a file."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from models.bundle import BundleSpec
from server.gateway.inference import Timing
from server.http.large_json import BASE64_PIECE, to_base64
from server.tasks.base import JSON, File, Task
from server.tasks.registry import TASKS


class Document(Response):
    """An answer in JSON: what Starlette's response would become, without what that asks itself on the way."""

    def __init__(self, content: bytes) -> None:
        self.body = content
        self.status_code = 200
        self.background = None
        self.raw_headers = [(b"content-length", b"%d" % len(content)), (b"content-type", JSON.encode())]


class Presenter:
    """Of one task."""

    def __init__(self, task: Task[Any, Any]) -> None:
        self.response = response_of(task)
        self._large = task.takes_long
        self._encoder = msgspec.json.Encoder()

    def respond(self, presented: Any, spec: BundleSpec, request_id: str, timing: Timing, media_type: str) -> Response:
        if isinstance(presented, File):
            durations = ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in _durations(timing))
            headers = {"X-Model": spec.id, "Server-Timing": durations, **presented.headers}
            return Response(presented.content, headers=headers, media_type=presented.media_type or media_type)
        return Document(self.document(presented, spec, request_id, timing))

    def document(self, presented: msgspec.Struct, spec: BundleSpec, request_id: str, timing: Timing) -> bytes:
        """The JSON answer."""
        light = _in_pieces(presented) if self._large else presented
        return self._encoder.encode(self.response(request_id, spec.name, spec.version, *msgspec.structs.astuple(light), timing))


def response_of(task: Task[Any, Any]) -> type[msgspec.Struct]:
    """The JSON answer of a task: its own fields between those that every answer has."""
    own = [(field.name, field.type) for field in msgspec.structs.fields(task.answer)]
    name = "".join(word.capitalize() for word in task.name.split("-"))
    fields = [("id", str), ("model", str), ("version", str), *own, ("timing", Timing)]
    return msgspec.defstruct(f"{name}Response", fields, frozen=True, namespace={"__doc__": task.answer.__doc__})


def _in_pieces(answer: msgspec.Struct) -> msgspec.Struct:
    """The same answer, its large files as JSON already: encoded all at once they would hold up every other thread."""
    light: dict[str, object] = {}
    for name in answer.__struct_fields__:
        value = getattr(answer, name)
        if isinstance(value, bytes) and len(value) > BASE64_PIECE:
            light[name] = msgspec.Raw(b'"%b"' % to_base64(value))
        elif isinstance(value, list) and value and isinstance(value[0], msgspec.Struct):
            light[name] = list(map(_in_pieces, value))
    return msgspec.structs.replace(answer, **light) if light else answer


def _durations(timing: Timing) -> list[tuple[str, float]]:
    return [(name, value) for name, value in msgspec.structs.asdict(timing).items() if name.endswith("_ms")]


PRESENTERS = {name: Presenter(task) for name, task in TASKS.items()}
