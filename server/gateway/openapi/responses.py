"""Responses for `/docs`, each with an example."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import msgspec

from server.gateway.inference.stages import Timing
from server.gateway.jobs.service import JobDocument, Links, events_url, result_url
from server.gateway.open_inference import errors
from server.gateway.openai import to_document
from server.gateway.status import StatusBundle, StatusDocument, StatusHistory, StatusJobs, StatusRefused, StatusTotals, StatusWorker
from server.http import sse
from server.http.problems import MEDIA_TYPE, Problem, ProblemKind
from server.queue.gateway.status_reader import STEP_S, DeadLetter, StatusLongJob, StatusQueue
from server.queue.record import JobProgress
from server.tasks.base import JSON, media_types
from server.tasks.registry import TASKS

BINARY = {"type": "string", "format": "binary"}
EXAMPLE_ID = "0b5c3a6e7f5d4b0fa1f5c86f4f0f7c11"
RETRY_AFTER = {"Retry-After": {"description": "Whole seconds", "schema": {"type": "integer"}}}
EXAMPLE_NOTE = "Small starter, for trying the machinery."
EXAMPLE_TIMING = Timing(prepare_ms=3.4, queue_ms=0.6, batch_wait_ms=0.2, inference_ms=11.8, total_ms=16.9, batch_size=4)


def answer(struct: str, description: str, example: object) -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{struct}"}, "example": msgspec.to_builtins(example)}
    return {"200": {"description": description, "content": {JSON: content}}}


def problems(*examples: tuple[ProblemKind, str, str | None]) -> dict[str, Any]:
    """Return responses by status; a status with several kinds lists them all."""
    documents = ((kind, kind.status, Problem(kind, detail, field).as_struct(EXAMPLE_ID, None)) for kind, detail, field in examples)
    return _responses(MEDIA_TYPE, {"$ref": "#/components/schemas/ProblemDocument"}, documents)


def protocol_errors(*examples: tuple[ProblemKind, str]) -> dict[str, Any]:
    """Return responses of the Open Inference Protocol by status, in its own error shape."""
    schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    return _responses(JSON, schema, ((kind, errors.status(kind), {"error": message}) for kind, message in examples))


def openai_errors(*examples: tuple[ProblemKind, str, str | None]) -> dict[str, Any]:
    """Return responses by status, in OpenAI's error shape."""
    documents = ((kind, kind.status, to_document(Problem(kind, detail, field))) for kind, detail, field in examples)
    return _responses(JSON, {"$ref": "#/components/schemas/OpenAIErrorDocument"}, documents)


def _responses(media_type: str, schema: dict[str, Any], examples: Iterable[tuple[ProblemKind, int, object]]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for kind, status, document in sorted(examples, key=lambda example: example[1]):
        response = responses.setdefault(str(status), {"description": "", "content": {media_type: {"schema": schema, "examples": {}}}})
        response["description"] = "; ".join(filter(None, (response["description"], kind.title)))
        response["content"][media_type]["examples"][kind.slug] = {"value": msgspec.to_builtins(document)}
        if status in (429, 503):
            response["headers"] = RETRY_AFTER
    return responses


def _optional_parameter(location: str, name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"in": location, "name": name, "required": False, "description": description, "schema": schema}


optional_header, optional_query = partial(_optional_parameter, "header"), partial(_optional_parameter, "query")
_EVENT = 'id: 2\nevent: progress\ndata: {"done": 1, "total": 8, "unit": "images"}\n\n'
EVENT_STREAM = {sse.MEDIA_TYPE: {"schema": {"type": "string"}, "example": _EVENT}}
JOB_ID = "000c2a9e-0b5c3a6e7f5d4b0fa1f5c86f4f0f7c11"
EXAMPLE_JOB = JobDocument(
    id=JOB_ID,
    task="classify",
    model="flags",
    version="1.0.0",
    state="running",
    place=None,
    progress=JobProgress(3, 8, "images"),
    created="2026-11-26T12:00:00.000Z",
    started="2026-11-26T12:00:00.140Z",
    finished=None,
    error=None,
    links=Links(events_url(JOB_ID), result_url(JOB_ID)),
)
QUEUED_JOB = msgspec.structs.replace(EXAMPLE_JOB, state="queued", place=4, progress=None, started=None)
ACCEPTED: dict[str, Any] = {
    "description": "With `Prefer: respond-async`: the job, which `Location` names",
    "headers": {
        "Location": {"schema": {"type": "string"}},
        "Preference-Applied": {"schema": {"type": "string", "enum": ["respond-async"]}},
    },
    "content": {JSON: {"schema": {"$ref": "#/components/schemas/JobDocument"}, "example": msgspec.to_builtins(QUEUED_JOB)}},
}

UNAVAILABLE = "mine@1 is unavailable: mine/1/model.safetensors: 1024 bytes where bundle.json says 2048: truncated or another file"
UNAUTHORIZED = (ProblemKind.UNAUTHORIZED, "unknown or revoked API key", None)
REFUSALS: tuple[tuple[ProblemKind, str, str | None], ...] = (
    UNAUTHORIZED,
    (ProblemKind.INVALID_BODY, "not JSON (JSON is malformed: invalid character (byte 0))", None),
    (ProblemKind.UNKNOWN_MODEL, "'cats' is not served; known for classify: flags@1.0.0", "model"),
    (ProblemKind.TOO_SLOW, "the body brought less than 10 KiB in 10 s", None),
    (ProblemKind.TOO_LARGE, "60000 × 60000 pixels is above the limit of 50 megapixels (OPSIN_MAX_PIXELS)", "image"),
    (ProblemKind.NOT_AN_IMAGE, "not an image in a supported format (JPEG, PNG, WebP, GIF, BMP, TIFF)", "image[3]"),
    (ProblemKind.UNSUPPORTED_ENCODING, "send the body without Content-Encoding: its parts are compressed already", None),
    (ProblemKind.CORRUPT_IMAGE, "JPEG file is truncated or corrupt (image file is truncated (211 bytes not processed))", "image[3]"),
    (ProblemKind.INVALID_OPTION, "'urgent' must be one of high, normal, low", "priority"),
    (ProblemKind.QUEUE_FULL, "the queue is full", None),
    (ProblemKind.KEY_QUOTA, "this API key may have 8 unfinished items at once (max_items)", None),
    (ProblemKind.RESULTS_FULL, "results that are kept or expected take all of OPSIN_RESULTS_MAX_BYTES", None),
    (ProblemKind.WORKER_CRASHED, "three workers died on this input", "image"),
    (ProblemKind.MODEL_ERROR, "the model failed on this input", "image"),
    (ProblemKind.INTERNAL, "internal error; see the service's log for this request ID", None),
    (ProblemKind.DRAINING, "the gateway is shutting down and accepts no new requests", None),
    (ProblemKind.REDIS_UNAVAILABLE, "Redis does not answer", None),
    (ProblemKind.NO_WORKER, "no worker was ready for flags@1.0.0 for 30 s (OPSIN_WORKER_GRACE)", None),
    (ProblemKind.BUNDLE_UNAVAILABLE, UNAVAILABLE, None),
    (ProblemKind.DEADLINE, "the request timed out and its work was cancelled", None),
)

FORBIDDEN = problems(
    (ProblemKind.FORBIDDEN, "the key of alice may not read this; the operator allows it with `metrics` in the key's line", None)
)
REDIS_UNAVAILABLE = problems((ProblemKind.REDIS_UNAVAILABLE, "Redis does not answer", None))

_STATUS = StatusDocument(
    time="2026-11-26T12:00:00.000Z",
    cell=0,
    gateways=2,
    workers=[StatusWorker("host-4711-a1b2", "ready", "cpu", ["flags@1.0.0"], restarts=0, slots=2)],
    queue=[StatusQueue("flags@1.0.0", "normal", waiting=12, running=8, oldest_s=0.2)],
    totals=StatusTotals(waiting=12, running=8, unfinished=20),
    jobs=StatusJobs(queued=0, running=1),
    long_jobs=[StatusLongJob("actions", "actions@1.1.0", "running", 12.3, 12.1, JobProgress(5, 8, "windows"))],
    bundles=[StatusBundle("flags", "1.0.0", items_per_second=210.4, batch_budget=8, rung="steps13", p50_ms=31.2, p95_ms=48.1)],
    refused=[StatusRefused("mine", "1", "mine/1/model.safetensors: 1024 bytes where bundle.json says 2048: truncated or another file")],
    history=StatusHistory(STEP_S, [640, 655], [640, 655], [31.2, 30.6], [48.1, 47.0], [6.4, 6.6], [41600, 42575], [10240, 10480]),
    dead_letters=[DeadLetter("2026-11-26T11:58:13.201Z", "flags@1.0.0", "the model failed")],
)
_STATUS_ANSWER = answer("StatusDocument", "The service at this moment, over all gateways and workers", _STATUS)
STATUS: dict[str, Any] = {"responses": {**_STATUS_ANSWER, **FORBIDDEN, **REDIS_UNAVAILABLE}}

_NOT_OF_SCENES = {"unauthorized", "results-full", "invalid-body", "unknown-model", "too-slow"}
_NOT_OF_SCENES |= {"not-an-image", "unsupported-encoding", "corrupt-image"}
"""Slugs of problems of uploads, which queries of a scene do not have."""
SCENE: dict[str, Any] = {
    "parameters": [
        optional_query("spacing", "As of the request that made the scene. Default: the bundle's.", {"type": "number"}),
        optional_query("threshold", "Default: 0.1.", {"type": "number"}),
        optional_query("mode", "Default: adaptive.", {"type": "string", "enum": ["adaptive", "dense"]}),
        optional_query("surface", "Default: joined if the scene has its view.", {"type": "string", "enum": ["joined", "network"]}),
        optional_query("format", "Default: from Accept, else glb.", {"type": "string", "enum": ["glb", "ply", "npz"]}),
    ],
    "responses": {
        "200": {
            "description": "As of the request that made the scene",
            "content": {media_type: {"schema": BINARY} for media_type in media_types(TASKS["reconstruct"]) if media_type != JSON}
            | {JSON: {"schema": {"type": "object"}}},
        },
        **problems(
            (ProblemKind.NOT_FOUND, "there is no scene '009d…', or it has expired (OPSIN_SCENE_TTL)", None),
            (ProblemKind.WRONG_CELL, "'009d5e0c1b7a3f4e0f8a2b6c4d1e9f7a35' belongs to cell 0, and this is cell 1", None),
            (ProblemKind.NOT_ACCEPTABLE, "'text/html': the answer is offered as model/gltf-binary", "Accept"),
            *(refusal for refusal in REFUSALS if refusal[0].slug not in _NOT_OF_SCENES),
        ),
    },
}

_UNKNOWN = (ProblemKind.UNKNOWN_MODEL, "Request for unknown model: 'cats' is not found")
_NO_REDIS = (ProblemKind.REDIS_UNAVAILABLE, "Redis does not answer")
_CONTROL = (
    (ProblemKind.MODEL_CONTROL, "loading and unloading models is off; the operator turns it on with OPSIN_MODEL_CONTROL=explicit"),
    (ProblemKind.FORBIDDEN, "the key of alice may not change models; the operator allows it with `admin` in the key's line"),
    _NO_REDIS,
)
LOAD: dict[str, Any] = {
    "responses": protocol_errors(*_CONTROL, (ProblemKind.INVALID_BODY, "failed to load 'cats', no worker has a bundle of that name"))
}
UNLOAD: dict[str, Any] = {"responses": protocol_errors(*_CONTROL, (_UNKNOWN[0], f"failed to unload 'cats': {_UNKNOWN[1]}"))}


def not_ready(example: dict[str, Any]) -> dict[str, Any]:
    return {"description": "Not ready, or Redis does not answer", "content": {JSON: {"schema": {"type": "object"}, "example": example}}}


SERVED: dict[str, Any] = {"responses": protocol_errors(_NO_REDIS)}
VERSIONS: dict[str, Any] = {"responses": protocol_errors(_UNKNOWN, _NO_REDIS)}
READY: dict[str, Any] = {"responses": {"503": not_ready({"ready": False, "error": "no worker is ready"})}}
_LOADING = not_ready({"name": "flags", "ready": False, "error": "model 'flags' is not ready: loading"})
VERSION_READY: dict[str, Any] = {"responses": {**VERSIONS["responses"], "503": _LOADING}}
INDEX: dict[str, Any] = {
    "responses": protocol_errors(
        (ProblemKind.INVALID_BODY, "failed to parse the request JSON: Input data was truncated"),
        (ProblemKind.TOO_LARGE, "the body is longer than 65536 bytes"),
        _NO_REDIS,
    )
}
INFER: dict[str, Any] = protocol_errors(
    (ProblemKind.INVALID_BODY, "unexpected shape for input 'image' for model 'flags'. Expected [-1,1], got [2,2]"),
    _UNKNOWN,
    (ProblemKind.TOO_SLOW, "the body brought less than 10 KiB in 10 s"),
    (ProblemKind.TOO_LARGE, "image: 60000 × 60000 pixels is above the limit of 50 megapixels (OPSIN_MAX_PIXELS)"),
    (ProblemKind.QUEUE_FULL, "the queue is full"),
    (ProblemKind.KEY_QUOTA, "this API key may have 8 unfinished items at once (max_items)"),
    (ProblemKind.MODEL_ERROR, "image: the model failed on this input"),
    (ProblemKind.NO_WORKER, "no worker was ready for flags@1.0.0 for 30 s (OPSIN_WORKER_GRACE)"),
    (ProblemKind.BUNDLE_UNAVAILABLE, UNAVAILABLE),
    (ProblemKind.DEADLINE, "the request timed out and its work was cancelled"),
)
_GONE = (
    (ProblemKind.NOT_FOUND, f"there is no job '{JOB_ID}', or it has expired (OPSIN_RESULT_TTL)", None),
    (ProblemKind.JOB_LOST, f"Redis has lost '{JOB_ID}', or it had expired before Redis restarted; send the request again", None),
    (ProblemKind.WRONG_CELL, f"'{JOB_ID}' belongs to cell 0, and this is cell 1", None),
    (ProblemKind.REDIS_UNAVAILABLE, "Redis does not answer", None),
)
_NO_RESULT = problems(
    (ProblemKind.NOT_ACCEPTABLE, "'text/html': the answer is offered as application/json", "Accept"),
    (ProblemKind.JOB_NOT_DONE, "the job is running", None),
    (ProblemKind.JOB_CANCELLED, "the job was cancelled before it had a result", None),
    (ProblemKind.CLIENT_QUOTA, "answers that are being read hold all of OPSIN_RESULTS_MAX_BYTES", None),
    (ProblemKind.MODEL_ERROR, "the model failed on this input", "image"),
    (ProblemKind.DEADLINE, "the deadline passed; the work was cancelled", None),
    *_GONE,
)
_NO_STREAM = problems(
    (ProblemKind.INVALID_OPTION, "'x': use the id of an event of this job, or 0", "Last-Event-ID"),
    (ProblemKind.TOO_MANY_STREAMS, "512 streams of events are open, half of OPSIN_MAX_CONNECTIONS", None),
)
JOB: dict[str, Any] = {"responses": {**answer("JobDocument", "The job", EXAMPLE_JOB), **problems(*_GONE)}}
RESULT: dict[str, Any] = {
    "responses": {"200": {"description": "What the plain request would have answered", "content": {JSON: {"schema": {}}}}, **_NO_RESULT}
}
EVENTS: dict[str, Any] = {
    "parameters": [optional_header("Last-Event-ID", "Only events after this one.", {"type": "integer", "minimum": 0})],
    "responses": {
        "200": {"description": "Events", "content": EVENT_STREAM},
        "204": {"description": "The job has ended, and its last event has been read"},
        **problems(*_GONE),
        **_NO_STREAM,
    },
}
CANCEL: dict[str, Any] = {"responses": {"204": {"description": "Cancelled, or removed if it had ended"}, **problems(*_GONE)}}
