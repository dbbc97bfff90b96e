"""What `/docs` says beyond the routes' own signatures: bodies that we read ourselves, and every response with an example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.gateway import events
from server.gateway.options import MAX_TIMEOUT
from server.gateway.problems import MEDIA_TYPE, Kind
from server.gateway.surface import Surface
from server.tasks.base import JSON, Part

EXAMPLE_ID = "0b5c3a6e7f5d4b0fa1f5c86f4f0f7c11"
EXAMPLE_TIMING = {
    "prepare_ms": 3.4,
    "queue_ms": 0.6,
    "batch_wait_ms": 0.2,
    "inference_ms": 11.8,
    "total_ms": 16.9,
    "batch_size": 4,
}
EXAMPLE_BASE64 = "/9j/4AAQSkZJRgABAQEASABIAAD…"
BASE64 = {"type": "string", "contentEncoding": "base64"}
BINARY = {"type": "string", "format": "binary"}
RAW_TYPES: Mapping[str, Sequence[str]] = {
    "image": ("image/jpeg", "image/png"),
    "video": ("video/mp4", "video/webm"),
    "text": ("text/plain",),
}
"""Kind of a part → Content-Types to choose from in `/docs`; any other is fine, too."""


def describe(app: FastAPI, paths: Mapping[str, Mapping[str, Any]], structs: Sequence[type[msgspec.Struct]]) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's routes, further `paths`, and the schemas of the structs that routes answer with."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, schemas = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    for operations in document["paths"].values():
        for operation in operations.values():
            content = operation["responses"].get("422", {}).get("content", {})
            if "HTTPValidationError" in str(content.get("application/json")):
                del content["application/json"]  # FastAPI's own: no route of ours leaves validation to it
                if not content:
                    del operation["responses"]["422"]
    document["paths"] = {**paths, **document["paths"]}
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    return document


def task_operation(surface: Surface, schema: str) -> dict[str, Any]:
    """`POST /v1/<task>` from the task's tables; `schema` names that of its JSON."""
    task = surface.task
    example = {"id": EXAMPLE_ID, "model": "flags", "version": "1.0.0", **task.example, "timing": EXAMPLE_TIMING}
    return {
        "tags": ["inference"],
        "summary": task.summary,
        "operationId": task.name,
        "description": _how_to_send(surface),
        "parameters": [*_query(surface), *_HEADERS],
        "requestBody": {"required": True, "content": _bodies(surface)},
        "responses": {
            "200": {
                "description": task.answer.__doc__ or task.summary,
                "content": {
                    media_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}
                    if media_type == JSON
                    else {"schema": BINARY}
                    for media_type in task.media_types
                }
                | EVENT_STREAM,
            },
            "202": ACCEPTED,
            **problems(*_REFUSALS, (Kind.NOT_ACCEPTABLE, f"'text/html': the answer is offered as {', '.join(task.media_types)}", "Accept")),
        },
    }


def _how_to_send(surface: Surface) -> str:
    first = surface.task.parts[0]
    parts = " ".join(f"`{part.name}`: {part.description}" for part in surface.parts.values())
    sentences = (
        surface.task.description,
        parts,
        f"Send a form with these parts, or the bytes of one `{first.name}` as the body (any other Content-Type), or JSON with base64.",
        "Several are all or nothing." if any(part.repeated for part in surface.parts.values()) else "",
        "Options are query parameters, form fields or JSON fields.",
    )
    return " ".join(filter(None, sentences))


def _query(surface: Surface) -> Iterable[dict[str, Any]]:
    for option in surface.options.values():
        default = f" Default: {option.default}." if option.default else ""
        yield _parameter("query", option.name, f"{option.description} {option.values}.{default}", _without_description(option.schema))


def _bodies(surface: Surface) -> dict[str, Any]:
    parts = surface.parts.values()
    fields = {name: dict(option.schema) for name, option in surface.options.items()}
    form = {part.name: {"type": "array", "items": BINARY, "minItems": 1} if part.repeated else BINARY for part in parts}
    in_json = {part.name: {"type": "string"} if part.kind == "text" else BASE64 for part in parts}
    lists = {
        plural: {"type": "array", "items": in_json[name], "minItems": 1} if name in in_json else fields[name]
        for plural, name in surface.plurals.items()
    }
    json_schema = {
        "type": "object",
        "properties": {**_either(in_json, fields), **lists},
        "allOf": [_one_of(part, surface) for part in parts if part.required],
        "additionalProperties": False,
    }
    return {
        "multipart/form-data": {
            "schema": {"type": "object", "required": [part.name for part in parts if part.required], "properties": _either(form, fields)}
        },
        JSON: {"schema": json_schema, "example": {part.name: EXAMPLE_BASE64 for part in parts if part.required}},
        **{kind: {"schema": BINARY} for kind in (*RAW_TYPES.get(surface.task.parts[0].kind, ()), "application/octet-stream")},
    }


def _either(parts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A name may be a part and an option."""
    both = {name: {"anyOf": [parts[name], options[name]]} for name in parts.keys() & options.keys()}
    return {**parts, **options, **both}


def _one_of(part: Part, surface: Surface) -> dict[str, Any]:
    """A required part comes under its name or its plural."""
    names = [part.name, *(plural for plural, name in surface.plurals.items() if name == part.name)]
    return {"oneOf": [{"required": [name]} for name in names]}


def _without_description(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != "description"}


def answer(struct: str, description: str, example: object) -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{struct}"}, "example": example}
    return {"200": {"description": description, "content": {JSON: content}}}


def problems(*examples: tuple[Kind, str, str | None]) -> dict[str, Any]:
    """Responses by status; a status with several kinds lists them all."""
    responses: dict[str, Any] = {}
    for kind, detail, field in sorted(examples, key=lambda example: example[0].status):
        document = {
            "type": f"urn:opsin:{kind.slug}",
            "title": kind.title,
            "status": kind.status,
            "detail": detail,
            "request_id": EXAMPLE_ID,
        }
        if field is not None:
            document["field"] = field
        response = responses.setdefault(
            str(kind.status),
            {"description": "", "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}, "examples": {}}}},
        )
        response["description"] = "; ".join(filter(None, (response["description"], kind.title)))
        response["content"][MEDIA_TYPE]["examples"][kind.slug] = {"value": document}
        if kind.status in (429, 503):
            response["headers"] = {"Retry-After": {"description": "Whole seconds", "schema": {"type": "integer"}}}
    return responses


def _parameter(where: str, name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"in": where, "name": name, "required": False, "description": description, "schema": schema}


_HEADERS = (
    _parameter("header", "X-Request-Timeout", "Seconds. Default: 60.", {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT}),
    _parameter("header", "Prefer", "`respond-async`: answer with a job.", {"type": "string"}),
    _parameter("header", "Idempotency-Key", "Repetitions are one job; only with `respond-async`.", {"type": "string", "maxLength": 256}),
    _parameter("header", "X-Request-ID", "For logs and traces; echoed, or made if it is missing.", {"type": "string", "maxLength": 128}),
)

EVENT_STREAM = {
    events.MEDIA_TYPE: {
        "schema": {"type": "string"},
        "example": 'id: 2\nevent: progress\ndata: {"done": 1, "total": 8, "unit": "images"}\n\n',
    }
}
JOB_ID = "5f0c2a9e-0b5c3a6e7f5d4b0fa1f5c86f4f0f7c11"
EXAMPLE_JOB = {
    "id": JOB_ID,
    "task": "classify",
    "model": "flags",
    "version": "1.0.0",
    "state": "running",
    "place": None,
    "progress": {"done": 3, "total": 8, "unit": "images"},
    "created": "2026-11-26T12:00:00.000Z",
    "started": "2026-11-26T12:00:00.140Z",
    "finished": None,
    "error": None,
    "links": {"events": f"/v1/jobs/{JOB_ID}/events", "result": f"/v1/jobs/{JOB_ID}/result"},
}
ACCEPTED: dict[str, Any] = {
    "description": "With `Prefer: respond-async`: the job, which `Location` names",
    "headers": {
        "Location": {"schema": {"type": "string"}},
        "Preference-Applied": {"schema": {"type": "string", "enum": ["respond-async"]}},
    },
    "content": {
        JSON: {
            "schema": {"$ref": "#/components/schemas/JobDocument"},
            "example": {**EXAMPLE_JOB, "state": "queued", "place": 4, "progress": None, "started": None},
        }
    },
}

_REFUSALS: tuple[tuple[Kind, str, str | None], ...] = (
    (Kind.INVALID_BODY, "not JSON (JSON is malformed: invalid character (byte 0))", None),
    (Kind.UNKNOWN_MODEL, "'cats' is not served; known for classify: flags@1.0.0", "model"),
    (Kind.TOO_LARGE, "60000 × 60000 pixels is above the limit of 50 megapixels (OPSIN_MAX_PIXELS)", "image"),
    (Kind.NOT_AN_IMAGE, "not an image in a format that is decoded here (JPEG, PNG, WebP, GIF, BMP, TIFF)", "image[3]"),
    (Kind.UNSUPPORTED_ENCODING, "send the body without Content-Encoding: its parts are compressed already", None),
    (Kind.CORRUPT_IMAGE, "JPEG file is truncated or corrupt (image file is truncated (211 bytes not processed))", "image[3]"),
    (Kind.INVALID_OPTION, "'urgent' must be one of high, normal, low", "priority"),
    (Kind.QUEUE_FULL, "the queue is full", None),
    (Kind.RESULTS_FULL, "results that are kept or expected take all of OPSIN_RESULTS_MAX_BYTES", None),
    (Kind.WORKER_CRASHED, "three workers died on this input", "image"),
    (Kind.MODEL_ERROR, "the model failed on this input", "image"),
    (Kind.INTERNAL, "something went wrong here; the log says more under this request id", None),
    (Kind.DRAINING, "this gateway takes no new work", None),
    (Kind.REDIS_AWAY, "Redis does not answer", None),
    (Kind.NO_WORKER, "no worker was ready for flags@1.0.0 for 30 s (OPSIN_WORKER_GRACE)", None),
    (Kind.DEADLINE, "no answer before the deadline; the work was cancelled", None),
)

_SUMMARY = {
    "name": "flags",
    "version": "1.0.0",
    "task": "classify",
    "state": "ready",
    "reason": "",
    "default": True,
    "inputs": [{"name": "image", "kind": "image", "required": True, "max_count": 32, "max_bytes": 67108864, "max_pixels": 50000000}],
    "labels": 238,
    "default_rung": "steps13",
    "ladder": [{"name": "steps13", "schedule": [13, 13, 13, 10], "accuracy": 0.97, "throughput": 1.62}],
}
_REDIS_AWAY = problems((Kind.REDIS_AWAY, "Redis does not answer", None))

MODELS: dict[str, Any] = {"responses": {**answer("ModelList", "Known bundles", {"models": [_SUMMARY]}), **_REDIS_AWAY}}

STATUS: dict[str, Any] = {
    "responses": {
        **answer(
            "StatusDocument",
            "The service at this moment, over all gateways and workers",
            {
                "time": "2026-11-26T12:00:00.000Z",
                "gateways": 2,
                "workers": [{"id": "host-4711-a1b2", "state": "ready", "device": "cpu", "bundles": ["flags@1.0.0"], "restarts": 0}],
                "queue": [{"bundle": "flags@1.0.0", "priority": "normal", "waiting": 12, "running": 8, "oldest_s": 0.2}],
                "jobs": {"queued": 0, "running": 1},
                "bundles": [{"model": "flags", "version": "1.0.0", "items_per_second": 210.4, "batch_budget": 8, "rung": "steps13"}],
                "history": {
                    "step_s": 5,
                    "requests": [640, 655],
                    "items": [640, 655],
                    "p50_ms": [31.2, 30.6],
                    "p95_ms": [48.1, 47.0],
                    "batch_size": [6.4, 6.6],
                    "tokens_in": [41600, 42575],
                    "tokens_out": [10240, 10480],
                },
                "dead_letters": [{"time": "2026-11-26T11:58:13.201Z", "bundle": "flags@1.0.0", "reason": "the model failed"}],
            },
        ),
        **_REDIS_AWAY,
    }
}

MODEL: dict[str, Any] = {
    "responses": {
        **answer(
            "ModelDetails",
            "One bundle",
            {
                **_SUMMARY,
                "workers": [{"id": "host-4711-a1b2", "device": "cpu", "items_per_second": 61.5, "batch_budget": 8}],
                "spec": {"schema_version": 1, "name": "flags", "version": "1.0.0", "task": "classify", "architecture": "vit"},
            },
        ),
        **problems((Kind.UNKNOWN_MODEL, "'cats' is not known; known: flags@1.0.0", None)),
        **_REDIS_AWAY,
    }
}

SCENE: dict[str, Any] = {
    "parameters": [
        _parameter("query", "spacing", "As of the request that made the scene. Default: the bundle's.", {"type": "number"}),
        _parameter("query", "threshold", "Default: 0.1.", {"type": "number"}),
        _parameter("query", "mode", "Default: adaptive.", {"type": "string", "enum": ["adaptive", "dense"]}),
        _parameter("query", "format", "Default: what is accepted, else glb.", {"type": "string", "enum": ["glb", "ply", "npz"]}),
    ],
    "responses": {
        "200": {"description": "As of the request that made the scene", "content": {"model/gltf-binary": {"schema": BINARY}}},
        **problems((Kind.NOT_FOUND, "there is no scene '9d5e…', or it has expired (OPSIN_SCENE_TTL)", None)),
        **_REDIS_AWAY,
    },
}
