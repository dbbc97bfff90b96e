"""Problems for refused inputs, failed jobs and all other errors that routes raise."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.gateway import model_directory
from server.http.middleware import internal_error
from server.http.problems import Problem, ProblemKind
from server.http.requests import CLIENT_CLOSED_REQUEST
from server.media.limits import MediaError
from server.queue.connect import RedisUnavailable
from server.queue.keys import cell_of
from server.queue.messages import Failure
from server.queue.script import Refused
from server.tasks.options import ExcessiveOption, InvalidOption
from server.telemetry import logs

KINDS = {kind.slug: kind for kind in ProblemKind}
JOB_FAILURE_KINDS = {
    kind.slug: kind for kind in (ProblemKind.WORKER_CRASHED, ProblemKind.MODEL_ERROR, ProblemKind.DEADLINE, ProblemKind.UNUSABLE_INPUT)
}
"""Failure kinds that are reported to clients unchanged; all others become 500."""

REASONS: dict[str, tuple[ProblemKind, str]] = {
    "full": (ProblemKind.QUEUE_FULL, "the queue is full: {items} jobs, {nbytes} bytes"),
    "long": (ProblemKind.QUEUE_FULL, "the queue is full but for what takes one pass: {items} jobs, {nbytes} bytes"),
    "low": (ProblemKind.QUEUE_FULL, "work of priority low has its half of the queue: {items} jobs, {nbytes} bytes"),
    "async": (ProblemKind.QUEUE_FULL, "asynchronous jobs hold half of the queue: {items} jobs, {nbytes} bytes"),
    "memory": (ProblemKind.QUEUE_FULL, "the queue's Redis is out of memory: {items} jobs, {nbytes} bytes"),
    "client": (ProblemKind.CLIENT_QUOTA, "one client holds at most {max_items} jobs and {max_nbytes} bytes of the queue"),
    "client-work": (ProblemKind.CLIENT_QUOTA, "one client has at most half of the work while others wait, too: {work_s} s are unfinished"),
    "client-last": (ProblemKind.CLIENT_QUOTA, "the queue is nearly full: one client holds at most {max_items} jobs of its last eighth"),
    "key": (ProblemKind.KEY_QUOTA, "this API key may have {max_items} unfinished items at once (max_items)"),
    "results": (
        ProblemKind.RESULTS_FULL,
        "results that are kept or expected take all of OPSIN_RESULTS_MAX_BYTES; DELETE those that have been read",
    ),
    "low-never": (
        ProblemKind.TOO_LARGE,
        "the request holds {items} jobs and {nbytes} bytes, and all work of priority low may hold {max_items} jobs and {max_nbytes} bytes, "
        "half of the queue",
    ),
    "key-never": (
        ProblemKind.TOO_LARGE,
        "the request is {items} jobs of the queue, and its API key may have {max_items} at once (max_items)",
    ),
    "async-items": (
        ProblemKind.TOO_LARGE,
        "the job takes {items} items, and asynchronous jobs may hold {max_items}, half of OPSIN_QUEUE_MAX_ITEMS",
    ),
    "async-bytes": (
        ProblemKind.TOO_LARGE,
        "the job takes {nbytes} bytes, and asynchronous jobs may hold {max_nbytes}, half of OPSIN_QUEUE_MAX_BYTES",
    ),
    "results-never": (
        ProblemKind.TOO_LARGE,
        "the job takes {nbytes} bytes of results, and OPSIN_RESULTS_MAX_BYTES leaves room for {max_nbytes}",
    ),
}
"""Reason of a full queue (`parts/admission.lua`) → the kind of problem, and its detail with the figures of an `Outcome`."""
RESULTS_RETRY_AFTER = 10

log = logs.get(__name__)


def refused_to_problem(refused: Refused, part: str | None = None) -> Problem:
    """Return the problem of a request that the queue has no capacity for. part: the field of a problem of the request itself."""
    kind, words = REASONS[refused.reason]
    outcome = refused.outcome
    figures = {name: getattr(outcome, name) for name in outcome.__struct_fields__}
    detail = words.format(**figures, work_s=max(1, math.ceil(outcome.work_ms / 1000)))
    if kind is ProblemKind.TOO_LARGE:
        return Problem(kind, detail, part)
    return Problem(kind, detail, retry_after=RESULTS_RETRY_AFTER if kind is ProblemKind.RESULTS_FULL else refused.retry_after)


def refusal_to_problem(error: InvalidOption | MediaError) -> Problem:
    """Return the problem of an input or an option that a task refuses."""
    if isinstance(error, MediaError):
        return Problem(KINDS[error.problem], str(error), error.part)
    return Problem(ProblemKind.TOO_LARGE if isinstance(error, ExcessiveOption) else ProblemKind.INVALID_OPTION, str(error), error.field)


def check_cell(id_: str, cell: int) -> None:
    """Raise Problem (421) for an id of a job or scene of another cell than this one."""
    if cell_of(id_) not in (None, cell):
        raise Problem(ProblemKind.WRONG_CELL, f"{id_!r} belongs to cell {cell_of(id_)}, and this is cell {cell}")


def redis_unavailable_problem(error: RedisUnavailable, request_id: str) -> Problem:
    """Return the problem for clients, and log what they must not see: the address of the queue, the unusable key."""
    if error.cause or error.is_about_key:
        event = "refused: queue key unusable" if error.is_about_key else "refused: queue unavailable"
        log.info(event, request_id=request_id, reason=str(error))
    return Problem(ProblemKind.REDIS_UNAVAILABLE, error.detail, retry_after=error.retry_after)


def error_to_problem(error: Exception, request_id: str) -> Problem:
    """Return the problem for an exception of a route."""
    if isinstance(error, Problem):
        return error
    return redis_unavailable_problem(error, request_id) if isinstance(error, RedisUnavailable) else internal_error()


async def respond_or_refuse(request: Request, answer: Awaitable[Response], refuse: Callable[[Problem], Response]) -> Response:
    """Return a route's response, or an error response by `refuse`, in the error format of the route's protocol."""
    try:
        return await answer
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except Exception as error:
        if not isinstance(error, Problem | RedisUnavailable):
            log.exception("request failed", request_id=request.state.request_id, method=request.method, path=request.scope["path"])
        return refuse(error_to_problem(error, request.state.request_id))


def failure_to_problem(failure: Failure, model: str, field: str | None) -> Problem:
    """Return the problem of a failed job. model: the bundle's name. A kind of failure that only a newer worker knows becomes 500."""
    if failure.kind == "unloaded":
        return model_directory.unloaded_problem(model)
    if failure.kind == "excessive":
        option, _, detail = failure.detail.partition(": ")
        return Problem(ProblemKind.TOO_LARGE, detail, option)
    if failure.kind == "deadline":
        field = None
    return Problem(JOB_FAILURE_KINDS.get(failure.kind, ProblemKind.INTERNAL), failure.detail, field)
