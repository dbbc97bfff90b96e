"""The OpenAPI document beyond the routes' own signatures: the parameters and bodies that Opsin reads itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.routing import BaseRoute

from server.gateway.auth.middleware import is_open_path
from server.gateway.inference.stages import TaskInterface
from server.gateway.openapi.responses import (
    ACCEPTED,
    BINARY,
    EVENT_STREAM,
    EXAMPLE_ID,
    EXAMPLE_NOTE,
    EXAMPLE_TIMING,
    REFUSALS,
    UNAUTHORIZED,
    optional_header,
    optional_query,
    problems,
    protocol_errors,
)
from server.http.problems import ProblemKind
from server.http.requests import MAX_TIMEOUT
from server.tasks.base import JSON, RequestPart, description, media_types, summary

EXAMPLES_BASE64: Mapping[str, str] = {
    "image": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mMwaDgAAAJUAXH2zLCsAAAAAElFTkSuQmCC"
}
"""A whole file for a kind of part, so that the example can be sent as it is."""
EXAMPLE_BASE64 = "AAAAIGZ0eXBpc29t"
"""The start of any other file."""
URL = {"type": "string", "format": "uri"}
BASE64 = {"type": "string", "contentEncoding": "base64"}
RAW_TYPES: Mapping[str, Sequence[str]] = {
    "image": ("image/jpeg", "image/png"),
    "video": ("video/mp4", "video/webm"),
    "audio": ("audio/wav", "audio/flac"),
    "text": ("text/plain",),
}
"""Content-Types to choose from in `/docs`, by a part's kind; any other is accepted, too."""
PROTOCOL_PATHS = "/v2"
"""Prefix of the paths of the Open Inference Protocol, which has its own error shape."""
_HEADERS = (
    optional_header("X-Request-Timeout", "Seconds. Default: 60.", {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT}),
    optional_header("Prefer", "`respond-async`: answer with a job.", {"type": "string"}),
    optional_header("Idempotency-Key", "Repetitions are one job; only with `respond-async`.", {"type": "string", "maxLength": 256}),
    optional_header("X-Webhook-URL", "https URL that is notified of the job's end; only with `respond-async`.", URL),
    optional_header("X-Webhook-Events", "Of `done`, `failed`, `cancelled`, with commas; all by default.", {"type": "string"}),
    optional_header("X-Request-ID", "For logs and traces; echoed, or made if it is missing.", {"type": "string", "maxLength": 128}),
)


def describe(
    app: FastAPI, paths: Mapping[str, Mapping[str, Any]], structs: Sequence[type[msgspec.Struct]], routes: Iterable[BaseRoute]
) -> dict[str, Any]:
    """Build the document of FastAPI's routes, further `paths`, and the schemas of the structs in responses.

    routes: those with examples.
    """
    servers = [{"url": "./"}]  # next to this document, under whatever prefix a proxy serves it
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes, servers=servers)
    _, schemas = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    for operations in document["paths"].values():
        for operation in operations.values():
            for openapi_parameter in operation.get("parameters", ()):
                if openapi_parameter["in"] == "path":
                    openapi_parameter["schema"] = {"type": "string"}  # a version is not null if the path names it
            content = operation["responses"].get("422", {}).get("content", {})
            if "HTTPValidationError" in str(content.get("application/json")):
                del content["application/json"]  # FastAPI's own: no route leaves validation to it
                if not content:
                    del operation["responses"]["422"]
    _restore_nulls(routes, document)
    document["paths"] = {**paths, **document["paths"]}
    for schema in _schemas(list(schemas.values())):
        if "prefixItems" in schema and schema.get("items") is False:
            del schema["items"]  # `maxItems` says the same, and client generators do not support the schema `false`
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    _add_security_schemes(document)
    return document


def _add_security_schemes(document: dict[str, Any]) -> None:
    """Describe API keys, which are required if the operator configures them."""
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, if the service requires one."},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key in its own header."},
    }
    document["security"] = [{}, {"bearer": []}, {"header": []}]
    for path, operations in document["paths"].items():
        refusal = protocol_errors(UNAUTHORIZED[:2]) if path.startswith(PROTOCOL_PATHS) else problems(UNAUTHORIZED)
        for operation in operations.values():
            if is_open_path(path):
                operation["security"] = []
            else:
                operation["responses"] = refusal | operation["responses"]


def _restore_nulls(routes: Iterable[BaseRoute], document: Mapping[str, Any]) -> None:
    """Restore null fields of examples, which FastAPI drops."""
    for route in routes:
        extra = getattr(route, "openapi_extra", None) or {}
        for method in getattr(route, "methods", ()) if extra else ():
            operation = document["paths"].get(route.path, {}).get(method.lower(), {})  # type: ignore[attr-defined]
            for status, response in extra.get("responses", {}).items():
                for media_type, content in response.get("content", {}).items():
                    if "example" in content:
                        operation["responses"][status]["content"][media_type]["example"] = content["example"]


def _schemas(part: object) -> Iterator[dict[str, Any]]:
    """Yield all objects in it."""
    if isinstance(part, dict):
        yield part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _schemas(inner)


def task_operation(interface: TaskInterface, schema: str, *, fetches: bool) -> dict[str, Any]:
    """Describe `POST /v1/<task>` by the task's tables. schema: name of its JSON's schema. fetches: parts may be given by URL."""
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
            **problems(
                *REFUSALS, (ProblemKind.NOT_ACCEPTABLE, f"'text/html': the answer is offered as {', '.join(media_types(task))}", "Accept")
            ),
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
        yield optional_query(option.name, f"{option.description} {option.values}.{default}", schema)


def _bodies(interface: TaskInterface, urls: Mapping[str, str]) -> dict[str, Any]:
    """Describe bodies. urls: name of the field that may hold a part's URL instead, by part."""
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
        "properties": {**_merge_properties(in_json, fields), **lists},
        "allOf" if required else "anyOf": [_one_of(part, interface, urls) for part in required or parts],
        "additionalProperties": False,
    }
    form_schema = {
        "type": "object",
        "properties": _merge_properties(form, fields),
        **_needed_in_form(required, parts, urls),
    }
    example_parts = [part for part in parts if part.required] or [interface.task.parts[0]]
    return {
        "multipart/form-data": {"schema": form_schema},
        JSON: {"schema": json_schema, "example": {part.name: EXAMPLES_BASE64.get(part.kind, EXAMPLE_BASE64) for part in example_parts}},
        **{kind: {"schema": BINARY} for kind in (*RAW_TYPES.get(interface.task.parts[0].kind, ()), "application/octet-stream")},
    }


def _needed_in_form(required: Sequence[RequestPart], parts: Iterable[RequestPart], urls: Mapping[str, str]) -> dict[str, Any]:
    def required_alternatives(some: Iterable[RequestPart]) -> list[dict[str, Any]]:
        return [{"required": [name]} for part in some for name in (part.name, urls.get(part.name)) if name is not None]

    if not required:
        return {"anyOf": required_alternatives(parts)}
    if not urls:
        return {"required": [part.name for part in required]}  # directly, for client and form generators
    return {"allOf": [{"anyOf": required_alternatives([part])} for part in required]}


def _merge_properties(parts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Merge parts and options, whose names may coincide."""
    both = {name: {"anyOf": [parts[name], options[name]]} for name in parts.keys() & options.keys()}
    return {**parts, **options, **both}


def _one_of(part: RequestPart, interface: TaskInterface, urls: Mapping[str, str]) -> dict[str, Any]:
    """Describe a required part under its name or its plural, or as a URL."""
    single = [part.name, *([urls[part.name]] if part.name in urls else [])]
    names = single + [plural for plural, name in interface.plurals.items() if name in single]
    return {"oneOf": [{"required": [name]} for name in names]}
