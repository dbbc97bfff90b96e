"""Requests and errors of `POST /v1/embeddings` as OpenAI's clients know them.

`input` as OpenAI's clients send it (a text or a list of texts), as Jina's do (objects with a text or an image each), and as infinity's
(images, with `modality`). Fields that the route does not know are ignored. Errors have the status codes of `/v1`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response

from server.gateway.inference.body import MAX_FIELD_BYTES, RequestBody, decode_base64, decode_fields, read_field
from server.gateway.inference.error_mapping import refusal_to_problem
from server.gateway.inference.stages import CommonOptions, TaskInterface, item_field
from server.http.json_outline import JsonOutline
from server.http.problems import Problem, ProblemKind
from server.quote import quote
from server.tasks.base import JSON
from server.tasks.embedding.embed import EmbedOptions, check_text
from server.tasks.options import InvalidOption
from server.tasks.registry import TASKS


class OpenAIError(msgspec.Struct, frozen=True):
    """An error. `type`: `invalid_request_error`, `rate_limit_error` or `server_error`; `param`: the field; `code`: the problem's kind."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorDocument(msgspec.Struct, frozen=True):
    """The body of every error response."""

    error: OpenAIError


def to_document(problem: Problem) -> OpenAIErrorDocument:
    message = problem.detail if problem.field is None else f"{problem.field}: {problem.detail}"
    return OpenAIErrorDocument(OpenAIError(message, _type(problem.kind.status), problem.field, problem.kind.slug))


def to_response(problem: Problem) -> Response:
    return Response(msgspec.json.encode(to_document(problem)), problem.kind.status, problem.headers(), JSON)


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"


INTERFACE = TaskInterface.from_tasks(TASKS["embed"])
OPTIONS = {"model": "model", "encoding_format": "encoding", "dimensions": "dimensions"}
"""Options of the task by fields of the body."""
FIELDS = {name: field for field, name in OPTIONS.items()}
UNSET: Mapping[str, Sequence[object]] = {"model": ("default/not-specified",), "dimensions": (0,)}
"""Values by which infinity's client leaves a choice to the service."""
MODALITIES = ("text", "image")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
MAX_URI_HEAD_CHARS = 256
"""Maximum number of characters in a data URI before its data."""
ACCEPTED = 'a text, {"text": "…"} or {"image": "<base64 or data URI>"}, or a list of 1 or more of these'


@dataclass(frozen=True)
class EmbeddingRequest:
    parts: dict[str, list[bytes]]
    """Parts of the request. Images are before texts, since errors name the items of a request by its first part."""
    common: CommonOptions
    options: EmbedOptions
    indices: Mapping[str, Sequence[int]]
    """Index in the answer of each element of a part."""

    @property
    def count(self) -> int:
        return sum(map(len, self.indices.values()))

    def take_parts(self) -> dict[str, list[bytes]]:
        """Return the parts, which are removed."""
        parts = dict(self.parts)
        self.parts.clear()
        return parts

    def field(self, name: str | None) -> str | None:
        """Return the field of the body for one that the task names: `image[1]` is the second image, wherever it is in `input`."""
        part, bracket, index = (name or "").partition("[")
        if part not in self.indices:
            return FIELDS.get(part, name)
        indices = self.indices[part]
        at = int(index.rstrip("]")) if bracket else 0
        if at >= len(indices) or (not bracket and len(indices) > 1):
            return "input"
        return item_field("input", indices[at], self.count)


def read_embedding_request(content: bytes, max_images: int) -> EmbeddingRequest:
    """Read the body. Raises Problem."""
    outline = JsonOutline.parse(content)
    written = decode_fields(outline, '{"input": "a dog"}')
    fields = {field: read_field(outline, written[field], field) for field in (*OPTIONS, "modality", "input") if field in written}
    common, options = _options({field: fields.get(field) for field in OPTIONS})
    modality = fields.get("modality")
    if modality not in (None, *MODALITIES):
        raise Problem(ProblemKind.INVALID_OPTION, f"{quote(modality)} must be one of {', '.join(MODALITIES)}", "modality")
    elements = _elements(fields.get("input"))
    body = RequestBody(INTERFACE, max_images, parts={"image": [], "text": []})
    indices: dict[str, list[int]] = {"image": [], "text": []}
    for index, element in enumerate(elements):
        field = item_field("input", index, len(elements))
        part, value = _part(element, modality or "text", field)
        _add(body, part, _image(value, field) if part == "image" else _text(value, field), field)
        indices[part].append(index)
    return EmbeddingRequest({part: contents for part, contents in body.parts.items() if contents}, common, options, indices)


def _options(fields: Mapping[str, Any]) -> tuple[CommonOptions, EmbedOptions]:
    options = {}
    for field, value in fields.items():
        if value is None or (type(value) is not bool and value in UNSET.get(field, ())):
            continue
        if isinstance(value, (str, memoryview)) and len(value) > MAX_FIELD_BYTES:
            raise Problem(ProblemKind.INVALID_OPTION, f"longer than {MAX_FIELD_BYTES} bytes", field)
        options[OPTIONS[field]] = [value]
    try:
        common, task_options = INTERFACE.read_options({}, options)
    except Problem as problem:
        raise Problem(problem.kind, problem.detail, FIELDS[problem.field or ""]) from problem
    assert isinstance(task_options, EmbedOptions)
    return common, task_options


def _elements(value: Any) -> list[Any]:
    elements = value if isinstance(value, list) else [value]
    if value is None or not elements:
        raise Problem(ProblemKind.INVALID_OPTION, f"{'missing' if value is None else 'an empty list'}: send {ACCEPTED}", "input")
    if any(isinstance(element, list) or type(element) in (int, float) for element in elements):
        advice = "send the text itself (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
        raise Problem(ProblemKind.INVALID_BODY, f"token ids are those of another tokenizer: {advice}", "input")
    return elements


def _part(element: Any, modality: str, field: str) -> tuple[str, str | memoryview]:
    """Return the part that an element of `input` belongs to, and its value."""
    part, value = modality, element
    if isinstance(element, dict):
        named = [name for name in MODALITIES if element.get(name) is not None]
        if len(named) != 1:
            raise Problem(
                ProblemKind.INVALID_OPTION, f"an object with {' and '.join(named) or 'neither text nor image'}: send {ACCEPTED}", field
            )
        part, value = named[0], element[named[0]]
    if not isinstance(value, (str, memoryview)):
        raise Problem(ProblemKind.INVALID_OPTION, f"{quote(value)} is not a string: send {ACCEPTED}", field)
    return part, value


def _text(value: str | memoryview, field: str) -> bytes:
    text = value if isinstance(value, str) else str(value, "utf-8")
    if text.startswith("data:image/"):
        raise Problem(
            ProblemKind.INVALID_BODY, 'an image where a text is expected: send {"image": "data:…"}, or "modality": "image"', field
        )
    try:
        check_text(text, field)
    except InvalidOption as error:
        raise refusal_to_problem(error) from error
    return text.encode()


def _image(value: str | memoryview, field: str) -> bytes:
    head = value[:MAX_URI_HEAD_CHARS] if isinstance(value, str) else str(value[:MAX_URI_HEAD_CHARS], "utf-8", "replace")
    scheme = SCHEME.match(head)
    if scheme is not None:
        if scheme[0].lower() != "data:":
            raise Problem(ProblemKind.INVALID_BODY, "URLs are not fetched: send the image's bytes in base64, or as a data URI", field)
        kind, comma, _ = head.partition(",")
        if not comma or not kind.isascii() or not kind.lower().endswith(";base64"):
            raise Problem(ProblemKind.INVALID_OPTION, "a data URI must be in base64: data:image/jpeg;base64,…", field)
        value = value[len(kind) + 1 :]
    image = decode_base64(value, field)
    if not image:
        raise Problem(ProblemKind.INVALID_BODY, "empty: no bytes of an image", field)
    return image


def _add(body: RequestBody, part: str, content: bytes, field: str) -> None:
    try:
        body.add_part(part, content)
    except Problem as problem:
        raise Problem(problem.kind, problem.detail, field) from problem
