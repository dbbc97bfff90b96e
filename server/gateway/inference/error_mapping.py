"""Problems of inputs that tasks refuse, of work that failed, and of whatever else a route raises."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.gateway.catalog import model_directory
from server.http.middleware import internal_error
from server.http.problems import Kind, Problem
from server.http.requests import CLIENT_CLOSED_REQUEST
from server.media.limits import MediaError
from server.queue.errors import RedisAway
from server.queue.messages import Failure
from server.tasks.options import ExcessiveOption, InvalidOption
from server.telemetry import logs

KINDS = {kind.slug: kind for kind in Kind}
OF_WORK = {kind.slug: kind for kind in (Kind.WORKER_CRASHED, Kind.MODEL_ERROR, Kind.DEADLINE, Kind.UNUSABLE_INPUT)}
"""Kinds of failures that clients are told as such; what else happens to work is ours to explain."""

log = logs.get(__name__)


def of_refusal(error: InvalidOption | MediaError) -> Problem:
    """The problem of an input or an option that a task refuses."""
    if isinstance(error, MediaError):
        return Problem(KINDS[error.problem], str(error), error.part)
    return Problem(Kind.TOO_LARGE if isinstance(error, ExcessiveOption) else Kind.INVALID_OPTION, str(error), error.field)


def redis_away(error: RedisAway, request_id: str) -> Problem:
    """The problem for clients. The log gets the request's id and what they do not get: the address of the queue, the unusable key."""
    if error.cause or error.of_a_key:
        event = "refused: queue key unusable" if error.of_a_key else "refused: the queue is away"
        log.info(event, request_id=request_id, reason=str(error))
    return Problem(Kind.REDIS_AWAY, error.detail, retry_after=error.retry_after)


def of_error(error: Exception, request_id: str) -> Problem:
    """The problem that a client gets for whatever a route raises."""
    if isinstance(error, Problem):
        return error
    return redis_away(error, request_id) if isinstance(error, RedisAway) else internal_error()


async def answered(request: Request, answer: Awaitable[Response], refuse: Callable[[Problem], Response]) -> Response:
    """Return a route's answer; whatever it raises leaves in the error shape of the route's protocol, which `refuse` makes."""
    try:
        return await answer
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except Exception as error:
        if not isinstance(error, Problem | RedisAway):
            log.exception("request failed", request_id=request.state.request_id, method=request.method, path=request.scope["path"])
        return refuse(of_error(error, request.state.request_id))


def of_reply(failure: Failure, model: str, field: str | None) -> Problem:
    """`model`: the bundle's name. A kind of failure that only a newer worker knows is ours to explain: 500."""
    if failure.kind == "unloaded":
        return model_directory.unloaded(model)
    if failure.kind == "excessive":
        option, _, detail = failure.detail.partition(": ")
        return Problem(Kind.TOO_LARGE, detail, option)
    if failure.kind == "deadline":
        field = None
    return Problem(OF_WORK.get(failure.kind, Kind.INTERNAL), failure.detail, field)
