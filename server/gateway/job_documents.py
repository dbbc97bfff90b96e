"""What `/docs` says of jobs: their routes, and the two other ways in which every request can be answered."""

from __future__ import annotations

from typing import Any

from server.gateway import events, openapi
from server.gateway.problems import Kind
from server.tasks.base import JSON

EXAMPLE_ID = "5f0c2a9e-0b5c3a6e7f5d4b0fa1f5c86f4f0f7c11"
EXAMPLE = {
    "id": EXAMPLE_ID,
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
    "links": {"events": f"/v1/jobs/{EXAMPLE_ID}/events", "result": f"/v1/jobs/{EXAMPLE_ID}/result"},
}
STREAM = {
    events.MEDIA_TYPE: {
        "schema": {"type": "string"},
        "example": 'id: 2\nevent: progress\ndata: {"done": 1, "total": 8, "unit": "images"}\n\n',
    }
}
ACCEPTED: dict[str, Any] = {
    "description": "With `Prefer: respond-async`: the job, which `Location` names",
    "headers": {
        "Location": {"schema": {"type": "string"}},
        "Preference-Applied": {"schema": {"type": "string", "enum": ["respond-async"]}},
    },
    "content": {JSON: {"schema": {"$ref": "#/components/schemas/JobDocument"}, "example": {**EXAMPLE, "state": "queued", "place": 4}}},
}

_GONE = openapi.problems(
    (Kind.NOT_FOUND, f"there is no job '{EXAMPLE_ID}', or it has expired (OPSIN_RESULT_TTL)", None),
    (Kind.JOB_LOST, f"the Redis that had taken '{EXAMPLE_ID}' is gone; send the request again", None),
    (Kind.REDIS_AWAY, "Redis does not answer", None),
)
_NO_RESULT = openapi.problems(
    (Kind.NOT_FOUND, f"there is no job '{EXAMPLE_ID}', or it has expired (OPSIN_RESULT_TTL)", None),
    (Kind.NOT_ACCEPTABLE, "'text/html': the answer is offered as application/json", "Accept"),
    (Kind.NOT_DONE, "the job is running", None),
    (Kind.JOB_CANCELLED, "the job was cancelled before it had a result", None),
    (Kind.JOB_LOST, f"the Redis that had taken '{EXAMPLE_ID}' is gone; send the request again", None),
    (Kind.MODEL_ERROR, "the model failed on this input", "image"),
    (Kind.DEADLINE, "the deadline passed; the work was cancelled", None),
)
_LAST_EVENT_ID = {
    "in": "header",
    "name": "Last-Event-ID",
    "required": False,
    "description": "Only events after this one.",
    "schema": {"type": "integer", "minimum": 0},
}

JOB: dict[str, Any] = {"responses": {**openapi.answer("JobDocument", "The job", EXAMPLE), **_GONE}}
RESULT: dict[str, Any] = {
    "responses": {"200": {"description": "What the plain request would have answered", "content": {JSON: {"schema": {}}}}, **_NO_RESULT}
}
EVENTS: dict[str, Any] = {"parameters": [_LAST_EVENT_ID], "responses": {"200": {"description": "Events", "content": STREAM}, **_GONE}}
CANCEL: dict[str, Any] = {"responses": {"204": {"description": "Cancelled, or removed if it had ended"}, **_GONE}}
