"""What `/docs` says beyond the routes' own signatures: bodies that we read ourselves, and every response with an example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.gateway.options import DEFAULT_TOP_K, MAX_TIMEOUT
from server.gateway.problems import MEDIA_TYPE, Kind
from server.queue.job import PRIORITIES

EXAMPLE_ID = "0b5c3a6e7f5d4b0fa1f5c86f4f0f7c11"


def describe(app: FastAPI, structs: Sequence[type[msgspec.Struct]]) -> dict[str, Any]:
    """The OpenAPI document, with the schemas of the structs that routes answer with."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, schemas = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    for operations in document["paths"].values():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]  # FastAPI's own: no route of ours leaves validation to it
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    return document


def _answer(struct: str, description: str, example: object) -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{struct}"}, "example": example}
    return {"200": {"description": description, "content": {"application/json": content}}}


def _problems(*examples: tuple[Kind, str, str | None]) -> dict[str, Any]:
    """Responses by status; a status with several kinds lists them all."""
    responses: dict[str, Any] = {}
    for kind, detail, field in examples:
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


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "model": ("`name` or `name@version`. Default: the service's default model.", {"type": "string"}),
    "top_k": (f"How many labels, from 1 to the number of classes. Default: {DEFAULT_TOP_K}.", {"type": "integer", "minimum": 1}),
    "merge": (
        "Token merging: `off`, how many tokens to merge in each block, or a rung of the ladder. Default: the bundle's default rung.",
        {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]},
    ),
    "priority": ("Who is served first. Default: normal.", {"type": "string", "enum": list(PRIORITIES)}),
}
OPTION_FIELDS = {name: {**schema, "description": description} for name, (description, schema) in OPTIONS.items()}
BASE64 = {"type": "string", "contentEncoding": "base64"}
BINARY = {"type": "string", "format": "binary"}

CLASSIFY: dict[str, Any] = {
    "description": (
        "Images are JPEG, PNG, WebP, GIF, BMP or TIFF, told apart by their bytes. Send one or more `image` parts of a form, the bytes "
        "of one image as the body (any other Content-Type), or JSON with base64. Several images are all or nothing. Options are query "
        "parameters, form fields or JSON fields."
    ),
    "parameters": [
        *(_parameter("query", name, description, schema) for name, (description, schema) in OPTIONS.items()),
        _parameter(
            "header", "X-Request-Timeout", "Seconds. Default: 60.", {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT}
        ),
        _parameter(
            "header", "X-Request-ID", "For logs and traces; echoed, or made if it is missing.", {"type": "string", "maxLength": 128}
        ),
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "array", "items": BINARY, "minItems": 1}, **OPTION_FIELDS},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"image": BASE64, "images": {"type": "array", "items": BASE64, "minItems": 1}, **OPTION_FIELDS},
                    "oneOf": [{"required": ["image"]}, {"required": ["images"]}],
                    "additionalProperties": False,
                },
                "example": {"image": "/9j/4AAQSkZJRgABAQEASABIAAD…", "top_k": 3},
            },
            "image/jpeg": {"schema": BINARY},
            "image/png": {"schema": BINARY},
            "application/octet-stream": {"schema": BINARY},
        },
    },
    "responses": {
        **_answer(
            "ClassifyResponse",
            "Labels of every image, best first",
            {
                "id": EXAMPLE_ID,
                "model": "clipart",
                "version": "1",
                "results": [
                    {
                        "predictions": [{"label": "fruit", "index": 4, "score": 0.93}, {"label": "flowers", "index": 3, "score": 0.04}],
                        "merging": {"rung": "fast", "schedule": [13] * 12, "tokens_in": 197, "tokens_out": 41},
                    }
                ],
                "timing": {
                    "prepare_ms": 3.4,
                    "queue_ms": 0.6,
                    "batch_wait_ms": 0.2,
                    "inference_ms": 11.8,
                    "total_ms": 16.9,
                    "batch_size": 4,
                },
            },
        ),
        **_problems(
            (Kind.INVALID_BODY, "no JSON (JSON is malformed: invalid character (byte 0))", None),
            (Kind.UNKNOWN_MODEL, "'cats' is not served; known for classify: clipart@1", "model"),
            (Kind.TOO_LARGE, "60000 × 60000 pixels is above the limit of 50 megapixels (OPSIN_MAX_PIXELS)", "image"),
            (Kind.NOT_AN_IMAGE, "not an image in a format that is decoded here (JPEG, PNG, WebP, GIF, BMP, TIFF)", "image[3]"),
            (Kind.UNSUPPORTED_ENCODING, "send the body without Content-Encoding: images are compressed already", None),
            (Kind.CORRUPT_IMAGE, "JPEG file is truncated or corrupt (image file is truncated (211 bytes not processed))", "image[3]"),
            (Kind.INVALID_OPTION, "99: use an integer from 1 to 20, the number of classes of clipart@1", "top_k"),
            (Kind.QUEUE_FULL, "the queue is full", None),
            (Kind.WORKER_CRASHED, "three workers died on this input", "image"),
            (Kind.MODEL_ERROR, "the model failed on this input", "image"),
            (Kind.INTERNAL, "something went wrong here; the log says more under this request id", None),
            (Kind.DRAINING, "this gateway takes no new work", None),
            (Kind.REDIS_AWAY, "Redis does not answer", None),
            (Kind.NO_WORKER, "no worker was ready for clipart@1 for 30 s (OPSIN_WORKER_GRACE)", None),
            (Kind.DEADLINE, "no answer before the deadline; the work was cancelled", None),
        ),
    },
}

_SUMMARY = {
    "name": "clipart",
    "version": "1",
    "task": "classify",
    "state": "ready",
    "reason": "",
    "default": True,
    "labels": 20,
    "default_rung": "balanced",
    "ladder": [{"name": "balanced", "schedule": 8, "accuracy": 0.81, "throughput": 1.5}],
}
_REDIS_AWAY = _problems((Kind.REDIS_AWAY, "Redis does not answer", None))

MODELS: dict[str, Any] = {"responses": {**_answer("ModelList", "Known bundles", {"models": [_SUMMARY]}), **_REDIS_AWAY}}

MODEL: dict[str, Any] = {
    "responses": {
        **_answer(
            "ModelDetails",
            "One bundle",
            {
                **_SUMMARY,
                "workers": [{"id": "host-4711-a1b2", "device": "cpu", "items_per_second": 61.5, "batch_budget": 8}],
                "spec": {"schema_version": 1, "name": "clipart", "version": "1", "task": "classify", "architecture": "vit"},
            },
        ),
        **_problems((Kind.UNKNOWN_MODEL, "'cats' is not known; known: clipart@1", None)),
        **_REDIS_AWAY,
    }
}
