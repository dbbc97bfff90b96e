"""What `/docs` says of the routes of jobs."""

from __future__ import annotations

from typing import Any

from server.gateway import openapi_answers
from server.gateway.openapi_answers import EVENT_STREAM, EXAMPLE_JOB, JOB_ID
from server.http.problems import Kind
from server.tasks.base import JSON

_GONE = openapi_answers.problems(
    (Kind.NOT_FOUND, f"there is no job '{JOB_ID}', or it has expired (OPSIN_RESULT_TTL)", None),
    (Kind.JOB_LOST, f"the Redis that had taken '{JOB_ID}' is gone; send the request again", None),
    (Kind.REDIS_AWAY, "Redis does not answer", None),
)
_NO_RESULT = openapi_answers.problems(
    (Kind.NOT_FOUND, f"there is no job '{JOB_ID}', or it has expired (OPSIN_RESULT_TTL)", None),
    (Kind.NOT_ACCEPTABLE, "'text/html': the answer is offered as application/json", "Accept"),
    (Kind.NOT_DONE, "the job is running", None),
    (Kind.JOB_CANCELLED, "the job was cancelled before it had a result", None),
    (Kind.JOB_LOST, f"the Redis that had taken '{JOB_ID}' is gone; send the request again", None),
    (Kind.CLIENT_SHARE, "answers that are being read hold all of OPSIN_RESULTS_MAX_BYTES, or a quarter for one client (10.0.0.7)", None),
    (Kind.MODEL_ERROR, "the model failed on this input", "image"),
    (Kind.REDIS_AWAY, "Redis does not answer", None),
    (Kind.DEADLINE, "the deadline passed; the work was cancelled", None),
)
_NO_STREAM = openapi_answers.problems(
    (Kind.INVALID_OPTION, "'x': use the id of an event of this job, or 0", "Last-Event-ID"),
    (Kind.TOO_MANY_READERS, "512 streams of events are open, half of OPSIN_MAX_CONNECTIONS", None),
)
_LAST_EVENT_ID = {
    "in": "header",
    "name": "Last-Event-ID",
    "required": False,
    "description": "Only events after this one.",
    "schema": {"type": "integer", "minimum": 0},
}

JOB: dict[str, Any] = {"responses": {**openapi_answers.answer("JobDocument", "The job", EXAMPLE_JOB), **_GONE}}
RESULT: dict[str, Any] = {
    "responses": {"200": {"description": "What the plain request would have answered", "content": {JSON: {"schema": {}}}}, **_NO_RESULT}
}
EVENTS: dict[str, Any] = {
    "parameters": [_LAST_EVENT_ID],
    "responses": {
        "200": {"description": "Events", "content": EVENT_STREAM},
        "204": {"description": "The job has ended, and its last event has been read"},
        **_GONE,
        **_NO_STREAM,
    },
}
CANCEL: dict[str, Any] = {"responses": {"204": {"description": "Cancelled, or removed if it had ended"}, **_GONE}}
