"""Problems of inputs that tasks refuse, and of work that failed."""

from __future__ import annotations

from server.gateway import directory
from server.http.problems import Kind, Problem
from server.media import images, limits, sound, video
from server.media.limits import MediaError
from server.queue.errors import RedisAway
from server.queue.messages import Failure
from server.tasks.options import ExcessiveOption, InvalidOption

MEDIA_PROBLEMS: dict[type[MediaError], Kind] = {
    images.NotAnImage: Kind.NOT_AN_IMAGE,
    images.TooManyPixels: Kind.TOO_LARGE,
    images.CorruptImage: Kind.CORRUPT_IMAGE,
    video.NotAVideo: Kind.NOT_A_VIDEO,
    video.TooMuchVideo: Kind.TOO_LARGE,
    video.NoVideo: Kind.NO_VIDEO,
    video.CorruptVideo: Kind.CORRUPT_VIDEO,
    sound.NotASound: Kind.NOT_A_SOUND,
    sound.TooMuchSound: Kind.TOO_LARGE,
    sound.NoSound: Kind.NO_SOUND,
    sound.CorruptSound: Kind.CORRUPT_SOUND,
    limits.InvalidPart: Kind.INVALID_OPTION,
    limits.ExcessivePart: Kind.TOO_LARGE,
}
FAILURE_PROBLEMS = {
    "worker-crashed": Kind.WORKER_CRASHED,
    "model-error": Kind.MODEL_ERROR,
    "deadline": Kind.DEADLINE,
    "unusable-input": Kind.UNUSABLE_INPUT,
}


def of_refusal(error: InvalidOption | MediaError, field: str | None = None) -> Problem:
    """The problem of an input or an option that a task refuses. field: the part, where the error names none."""
    if isinstance(error, MediaError):
        return Problem(MEDIA_PROBLEMS[type(error)], str(error), error.part or field)
    return Problem(Kind.TOO_LARGE if isinstance(error, ExcessiveOption) else Kind.INVALID_OPTION, str(error), error.field)


def redis_away(error: RedisAway) -> Problem:
    return Problem(Kind.REDIS_AWAY, str(error), retry_after=error.retry_after)


def of_reply(failure: Failure, model: str, field: str | None) -> Problem:
    """`model`: the bundle's name. A kind of failure that only a newer worker knows is ours to explain: 500."""
    if failure.kind == "unloaded":
        return directory.unloaded(model)
    if failure.kind == "excessive":
        option, _, detail = failure.detail.partition(": ")
        return Problem(Kind.TOO_LARGE, detail, option)
    if failure.kind == "deadline":
        field = None
    return Problem(FAILURE_PROBLEMS.get(failure.kind, Kind.INTERNAL), failure.detail, field)
