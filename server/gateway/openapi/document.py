"""The OpenAPI document beyond the routes' own signatures: the parameters and bodies that we read ourselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.routing import BaseRoute

from server.gateway.auth.middleware import answers_everybody
from server.gateway.inference.task_interface import TaskInterface
from server.gateway.openapi.responses import (
    ACCEPTED,
    BINARY,
    EVENT_STREAM,
    EXAMPLE_ID,
    EXAMPLE_NOTE,
    EXAMPLE_TIMING,
    REFUSALS,
    UNAUTHORIZED,
    parameter,
    problems,
    protocol_errors,
)
from server.http.problems import Kind
from server.http.requests import MAX_TIMEOUT
from server.tasks.base import JSON, RequestPart, description, summary
from server.tasks.capabilities import media_types

EXAMPLES_BASE64: Mapping[str, str] = {
    "image": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mMwaDgAAAJUAXH2zLCsAAAAAElFTkSuQmCC"
}
"""A file of a kind of part, whole, so that the example can be sent as it is."""
EXAMPLE_BASE64 = "AAAAIGZ0eXBpc29t"
"""The beginning of any other file."""
URL = {"type": "string", "format": "uri"}
BASE64 = {"type": "string", "contentEncoding": "base64"}
RAW_TYPES: Mapping[str, Sequence[str]] = {
    "image": ("image/jpeg", "image/png"),
    "video": ("video/mp4", "video/webm"),
    "audio": ("audio/wav", "audio/flac"),
    "text": ("text/plain",),
}
"""Kind of a part → Content-Types to choose from in `/docs`; any other is fine, too."""


PROTOCOL_PATHS = "/v2"
"""Paths of the Open Inference Protocol, whose errors have a shape of their own, begin with it."""

_HEADERS = (
    parameter("header", "X-Request-Timeout", "Seconds. Default: 60.", {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT}),
    parameter("header", "Prefer", "`respond-async`: answer with a job.", {"type": "string"}),
    parameter("header", "Idempotency-Key", "Repetitions are one job; only with `respond-async`.", {"type": "string", "maxLength": 256}),
    parameter("header", "X-Webhook-URL", "https URL that is told of the job's end; only with `respond-async`.", URL),
    parameter("header", "X-Webhook-Events", "Of `done`, `failed`, `cancelled`, with commas; all by default.", {"type": "string"}),
    parameter("header", "X-Request-ID", "For logs and traces; echoed, or made if it is missing.", {"type": "string", "maxLength": 128}),
)


def describe(
    app: FastAPI, paths: Mapping[str, Mapping[str, Any]], structs: Sequence[type[msgspec.Struct]], routes: Iterable[BaseRoute]
) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's routes, further `paths`, and the schemas of the structs that routes answer with.

    routes: those with examples.
    """
    servers = [{"url": "./"}]  # beside this document, under whatever prefix a proxy serves it
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes, servers=servers)
    _, schemas = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    for operations in document["paths"].values():
        for operation in operations.values():
            for told in operation.get("parameters", ()):
                if told["in"] == "path":
                    told["schema"] = {"type": "string"}  # a version is not null where the path names it
            content = operation["responses"].get("422", {}).get("content", {})
            if "HTTPValidationError" in str(content.get("application/json")):
                del content["application/json"]  # FastAPI's own: no route of ours leaves validation to it
                if not content:
                    del operation["responses"]["422"]
    _restore_nulls(routes, document)
    document["paths"] = {**paths, **document["paths"]}
    for schema in _schemas(list(schemas.values())):
        if "prefixItems" in schema and schema.get("items") is False:
            del schema["items"]  # `maxItems` says the same, and generators of clients know no schema `false`
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    _tell_of_keys(document)
    return document


def _tell_of_keys(document: dict[str, Any]) -> None:
    """They are needed where the operator says so."""
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the service asks for one."},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same in a header of its own."},
    }
    document["security"] = [{}, {"bearer": []}, {"header": []}]
    for path, operations in document["paths"].items():
        refusal = protocol_errors(UNAUTHORIZED[:2]) if path.startswith(PROTOCOL_PATHS) else problems(UNAUTHORIZED)
        for operation in operations.values():
            if answers_everybody(path):
                operation["security"] = []
            else:
                operation["responses"] = refusal | operation["responses"]


def _restore_nulls(routes: Iterable[BaseRoute], document: Mapping[str, Any]) -> None:
    """FastAPI leaves fields that are null out of our examples."""
    for route in routes:
        told = getattr(route, "openapi_extra", None) or {}
        for method in getattr(route, "methods", ()) if told else ():
            operation = document["paths"].get(route.path, {}).get(method.lower(), {})  # type: ignore[attr-defined]
            for status, response in told.get("responses", {}).items():
                for media_type, content in response.get("content", {}).items():
                    if "example" in content:
                        operation["responses"][status]["content"][media_type]["example"] = content["example"]


def _schemas(part: object) -> Iterator[dict[str, Any]]:
    """All objects in it."""
    if isinstance(part, dict):
        yield part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _schemas(inner)


def task_operation(interface: TaskInterface, schema: str, *, fetches: bool) -> dict[str, Any]:
    """`POST /v1/<task>` from the task's tables; `schema` names that of its JSON. fetches: parts may be named by URL."""
    urls = {part: name for name, part in interface.urls.items()} if fetches else {}
    task = interface.task
    common = {"timing": msgspec.to_builtins(EXAMPLE_TIMING), "note": EXAMPLE_NOTE}
    answer = {} if task.example is None else msgspec.to_builtins(task.example)
    example = {"id": EXAMPLE_ID, "model": "flags", "version": "1.0.0", **answer, **common}
    return {
        "tags": ["inference"],
        "summary": summary(task),
        "operationId": task.name,
        "description": _how_to_send(interface),
        "parameters": [*_query(interface), *_HEADERS],
        "requestBody": {"required": True, "content": _bodies(interface, urls)},
        "responses": {
            "200": {
                "description": task.answer.__doc__ or summary(task),
                "content": {
                    media_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}
                    if media_type == JSON
                    else {"schema": BINARY}
                    for media_type in media_types(task)
                }
                | EVENT_STREAM,
            },
            "202": ACCEPTED,
            **problems(*REFUSALS, (Kind.NOT_ACCEPTABLE, f"'text/html': the answer is offered as {', '.join(media_types(task))}", "Accept")),
        },
    }


def _how_to_send(interface: TaskInterface) -> str:
    first = interface.task.parts[0]
    parts = " ".join(f"`{part.name}`: {part.description}" for part in interface.parts.values())
    sentences = (
        description(interface.task),
        parts,
        f"Send a form with these parts, or the bytes of one `{first.name}` as the body (any other Content-Type), or JSON with base64.",
        "Several are all or nothing." if any(part.repeated for part in interface.parts.values()) else "",
        "Options are query parameters, form fields or JSON fields.",
    )
    return " ".join(filter(None, sentences))


def _query(interface: TaskInterface) -> Iterable[dict[str, Any]]:
    for option in interface.options.values():
        default = f" Default: {option.default}." if option.default else ""
        schema = {name: value for name, value in option.schema.items() if name != "description"}
        yield parameter("query", option.name, f"{option.description} {option.values}.{default}", schema)


def _bodies(interface: TaskInterface, urls: Mapping[str, str]) -> dict[str, Any]:
    """urls: part → name of the field that may hold its URL in its place."""
    parts = interface.parts.values()
    fields = {name: dict(option.schema) for name, option in interface.options.items()}
    form = {part.name: {"type": "array", "items": BINARY, "minItems": 1} if part.repeated else BINARY for part in parts}
    in_json = {part.name: {"type": "string"} if part.kind == "text" else BASE64 for part in parts}
    in_json |= dict.fromkeys(urls.values(), URL)
    form |= {name: {"type": "array", "items": URL, "minItems": 1} if interface.parts[part].repeated else URL for part, name in urls.items()}
    lists = {
        plural: {"type": "array", "items": in_json[name], "minItems": 1} if name in in_json else fields[name]
        for plural, name in interface.plurals.items()
        if name in in_json or name in fields
    }
    required = [part for part in parts if part.required]
    json_schema = {
        "type": "object",
        "properties": {**_either(in_json, fields), **lists},
        "allOf" if required else "anyOf": [_one_of(part, interface, urls) for part in required or parts],
        "additionalProperties": False,
    }
    form_schema = {
        "type": "object",
        "properties": _either(form, fields),
        **_needed_in_form(required, parts, urls),
    }
    shown = [part for part in parts if part.required] or [interface.task.parts[0]]
    return {
        "multipart/form-data": {"schema": form_schema},
        JSON: {"schema": json_schema, "example": {part.name: EXAMPLES_BASE64.get(part.kind, EXAMPLE_BASE64) for part in shown}},
        **{kind: {"schema": BINARY} for kind in (*RAW_TYPES.get(interface.task.parts[0].kind, ()), "application/octet-stream")},
    }


def _needed_in_form(required: Sequence[RequestPart], parts: Iterable[RequestPart], urls: Mapping[str, str]) -> dict[str, Any]:
    def either(some: Iterable[RequestPart]) -> list[dict[str, Any]]:
        return [{"required": [name]} for part in some for name in (part.name, urls.get(part.name)) if name is not None]

    if not required:
        return {"anyOf": either(parts)}
    if not urls:
        return {"required": [part.name for part in required]}  # itself, where generators of clients and forms look for it
    return {"allOf": [{"anyOf": either([part])} for part in required]}


def _either(parts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A name may be a part and an option."""
    both = {name: {"anyOf": [parts[name], options[name]]} for name in parts.keys() & options.keys()}
    return {**parts, **options, **both}


def _one_of(part: RequestPart, interface: TaskInterface, urls: Mapping[str, str]) -> dict[str, Any]:
    """A required part comes under its name or its plural, or as a URL."""
    given = [part.name, *([urls[part.name]] if part.name in urls else [])]
    names = given + [plural for plural, name in interface.plurals.items() if name in given]
    return {"oneOf": [{"required": [name]} for name in names]}
