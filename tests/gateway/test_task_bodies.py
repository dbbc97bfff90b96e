"""Bodies of a task with parts and options of every kind, and what OpenAPI says of it; classification has only one part."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import jsonschema
import msgspec
import pytest
from msgspec import Meta

from models.bundle import BundleSpec
from server.concurrency import Deadline, TimerWheel
from server.gateway.auth.key_file import ANONYMOUS_KEY
from server.gateway.fair_executor import BodyExecutor
from server.gateway.inference.admission import RequestContext
from server.gateway.inference.body import RequestBody, read_request_body
from server.gateway.inference.stages import CommonOptions, TaskInterface
from server.gateway.openapi import document as openapi
from server.http.problems import Problem, ProblemKind
from server.http.requests import Head
from server.media.images import ImageDecoder
from server.queue.gateway.reservations import Reservations
from server.queue.script import Claim
from server.settings import Settings
from server.tasks.base import Arrays, Item, OffersFiles, Outputs, RequestPart, Task
from server.tasks.options import RequestOptions


class PaintOptions(RequestOptions, frozen=True, kw_only=True):
    mask: Annotated[str, Meta(pattern="^(center|box:)")] | None = None
    label: Annotated[list[str], Meta(max_length=3)] = msgspec.field(default_factory=list)
    steps: Annotated[int, Meta(ge=1, le=1000)] = 50
    sampler: Literal["ddim", "ancestral"] = "ddim"
    deterministic: bool = False


class PaintResult(msgspec.Struct):
    width: int


class Paint(Task[PaintOptions, PaintOptions], OffersFiles[PaintOptions, PaintOptions]):
    """Paint."""

    name = "paint"
    parts = (
        RequestPart("image", "image", "What to paint on.", max_count=None),
        RequestPart("mask", "image", "Where.", required=False),
        RequestPart("text", "text", "What.", max_count=2, required=False),
    )
    options = PaintOptions
    answer = PaintResult
    example: ClassVar[dict[str, int]] = {"width": 1}
    media_types = ("image/png", "application/json")

    def prepare(self, item: Item, plan: PaintOptions, spec: BundleSpec, decoder: ImageDecoder) -> list[Arrays]:
        return []

    def present(self, outputs: Sequence[Outputs], plan: PaintOptions, spec: BundleSpec, media_type: str) -> PaintResult:
        return PaintResult(1)

    def result_bound(self, plan: PaintOptions, spec: BundleSpec, arrays: Arrays) -> int:
        return 0

    def samples(self, spec: BundleSpec) -> Sequence[Arrays]:
        return ({},)


INTERFACE = TaskInterface.from_tasks(Paint())
Read = tuple[RequestBody, CommonOptions, PaintOptions]


async def read(body: bytes, content_type: str, query: str = "") -> Read:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    unused: Any = None
    head = Head.parse("/", [(b"content-type", content_type.encode())])
    query_options = INTERFACE.read_query(query.encode())
    reservation = Reservations(unused, Settings(), grant_s=0.0).reserve(Claim())  # of an empty queue
    deadline = Deadline(TimerWheel(), None)
    context = RequestContext(head, receive, "id", "", ANONYMOUS_KEY, "answer", "rest", False, deadline, reservation)
    parsed = await read_request_body(context, INTERFACE, Settings(max_images=3), BodyExecutor())
    common, options = INTERFACE.read_options(query_options, parsed.fields)
    assert isinstance(options, PaintOptions)
    return parsed, common, options


async def read_json(document: object, query: str = "") -> Read:
    return await read(json.dumps(document).encode(), "application/json", query)


def form(*fields: tuple[str, str | None, bytes]) -> tuple[bytes, str]:
    """Build a form from the (name, file name, content) of each part."""
    parts = []
    for name, file, content in fields:
        disposition = f'form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
        parts.append(f"--b\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n")
    return b"".join(parts) + b"--b--\r\n", "multipart/form-data; boundary=b"


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


OPTIONS = PaintOptions(label=["a", "b"], steps=7, sampler="ancestral", deterministic=True)


async def test_forms_json_and_urls_say_the_same() -> None:
    fields = [("label", None, b"a"), ("label", None, b"b"), ("steps", None, b"7"), ("sampler", None, b"ancestral")]
    in_form = await read(*form(("image", "1.png", b"one"), *fields, ("deterministic", None, b"true"), ("priority", None, b"low")))
    in_json = await read_json(
        {"image": b64(b"one"), "labels": ["a", "b"], "steps": 7, "sampler": "ancestral", "deterministic": True, "priority": "low"}
    )
    in_url = await read(b"one", "image/png", "label=a&label=b&steps=7&sampler=ancestral&deterministic=1&priority=low")
    for parsed, common, options in (in_form, in_json, in_url):
        assert (parsed.parts, common, options) == ({"image": [b"one"]}, CommonOptions(priority="low"), OPTIONS)


async def test_elements_of_repeated_part_are_items_with_other_parts() -> None:
    parsed, _, options = await read_json({"images": [b64(b"one"), b64(b"two")], "mask": b64(b"where")})
    assert INTERFACE.items(parsed.parts) == [{"image": b"one", "mask": b"where"}, {"image": b"two", "mask": b"where"}]
    assert options.mask is None
    parsed, _, _ = await read(*form(("mask", "m.png", b"where"), ("image", None, b"one")))
    assert INTERFACE.items(parsed.parts) == [{"image": b"one", "mask": b"where"}]


async def test_name_of_both_tables_is_an_option_if_its_text_fits() -> None:
    for parsed, _, options in (
        await read_json({"image": b64(b"one"), "mask": "center"}),
        await read(*form(("image", "1.png", b"one"), ("mask", None, b"center"))),
        await read(b"one", "", "mask=center"),
    ):
        assert (options.mask, list(parsed.parts)) == ("center", ["image"])


async def test_texts_are_themselves_in_json() -> None:
    parsed, _, _ = await read_json({"texts": ["ä dog", "two"]})
    assert INTERFACE.items(parsed.parts) == [{"text": "ä dog".encode()}, {"text": b"two"}]


@pytest.mark.parametrize(
    ("document", "query", "kind", "field"),
    [
        ({"image": b64(b"1"), "colour": 1}, "", ProblemKind.INVALID_OPTION, "colour"),
        ({"image": b64(b"1")}, "colour=1", ProblemKind.INVALID_OPTION, "colour"),
        ({"image": b64(b"1")}, "image=1", ProblemKind.INVALID_OPTION, "image"),
        ({"image": b64(b"1"), "steps": 7}, "steps=7", ProblemKind.INVALID_OPTION, "steps"),
        ({"image": b64(b"1")}, "steps=7&steps=8", ProblemKind.INVALID_OPTION, "steps"),
        ({"image": b64(b"1"), "label": "a", "labels": ["b"]}, "", ProblemKind.INVALID_OPTION, "labels"),
        ({"images": [b64(b"1")], "image": b64(b"1")}, "", ProblemKind.INVALID_OPTION, "images"),
        ({"image": b64(b"1"), "labels": "b"}, "", ProblemKind.INVALID_OPTION, "labels"),
        ({"image": b64(b"1"), "labels": ["a"] * 4}, "", ProblemKind.INVALID_OPTION, "label"),
        ({"image": b64(b"1"), "steps": 1001}, "", ProblemKind.INVALID_OPTION, "steps"),
        ({"image": b64(b"1"), "text": "a"}, "", ProblemKind.INVALID_OPTION, "text"),
        ({"image": b64(b"1"), "masks": ["center"]}, "", ProblemKind.INVALID_OPTION, "masks"),
        ({"image": None}, "", ProblemKind.INVALID_OPTION, "image"),
        ({"steps": 7}, "", ProblemKind.INVALID_OPTION, "image"),
        ({"images": ["", b64(b"1")]}, "", ProblemKind.INVALID_BODY, "image[0]"),
        ({"images": [b64(b"1")] * 4}, "", ProblemKind.TOO_LARGE, "image"),
        ({"texts": ["a", "b", "c"]}, "", ProblemKind.TOO_LARGE, "text"),
        ({"image": b64(b"1"), "steps": "7" * 5000}, "", ProblemKind.INVALID_OPTION, "steps"),
        ({"image": b64(b"1"), "steps": 10**500}, "", ProblemKind.INVALID_OPTION, "steps"),
        ({"image": b64(b"1"), "steps": {"x": "x" * 2**21}}, "", ProblemKind.INVALID_OPTION, "steps"),
        ({"image": b64(b"1"), "labels": ["a", "x" * 2**21]}, "", ProblemKind.INVALID_OPTION, "label[1]"),
        ({"image": b64(b"1"), "x" * 2**21: 1}, "", ProblemKind.INVALID_OPTION, "x" * 100),
    ],
)
async def test_nothing_is_silently_ignored(document: dict[str, object], query: str, kind: ProblemKind, field: str) -> None:
    with pytest.raises(Problem) as refusal:
        await read_json(document, query)
    assert (refusal.value.kind, refusal.value.field) == (kind, field)


async def test_a_number_beyond_all_is_named() -> None:
    with pytest.raises(Problem, match="number") as refusal:
        await read(b'{"image": "' + b64(b"1").encode() + b'", "steps": 1e400}', "application/json")
    assert (refusal.value.kind, refusal.value.field) == (ProblemKind.INVALID_OPTION, "steps")


async def test_a_part_that_may_come_once_is_refused_a_second_time() -> None:
    with pytest.raises(Problem, match="twice"):
        await read(*form(("image", "1.png", b"one"), ("mask", "m.png", b"1"), ("mask", "m.png", b"2")))


async def test_what_is_documented_is_what_is_read() -> None:
    operation = openapi.task_operation(INTERFACE, "PaintResponse", fetches=False)
    assert list(operation["responses"]["200"]["content"]) == ["image/png", "application/json", "text/event-stream"]
    assert [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"] == list(INTERFACE.options)
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    for document in (
        {"image": b64(b"1")},
        {"images": [b64(b"1")], "mask": b64(b"2"), "labels": ["a"], "steps": 7},
        {"image": b64(b"1"), "mask": "center"},
    ):
        jsonschema.validate(document, schema)
    for document in ({}, {"image": "", "images": []}, {"image": "", "steps": 0}, {"image": "", "colour": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, schema)


async def test_urls_are_documented_where_they_are_fetched() -> None:
    content = openapi.task_operation(INTERFACE, "PaintResponse", fetches=True)["requestBody"]["content"]
    schema, form_schema = content["application/json"]["schema"], content["multipart/form-data"]["schema"]
    url = "https://images.example/cat.jpg"
    for document in ({"image": b64(b"1")}, {"image_url": url}, {"image_urls": [url], "mask": "center"}):
        jsonschema.validate(document, schema)
    for document in ({}, {"image": "", "image_url": url}, {"mask_url": url, "image": ""}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, schema)
    jsonschema.validate({"image_url": [url]}, form_schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"mask": "center"}, form_schema)
