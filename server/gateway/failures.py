"""What is wrong with an input, or became of its work, as a problem."""

from __future__ import annotations

from server.gateway import directory
from server.gateway.problems import Kind, Problem, of_option
from server.media import images, limits, video
from server.media.limits import MediaError
from server.queue.job import Failure
from server.tasks.options import InvalidOption

MEDIA_PROBLEMS: dict[type[MediaError], Kind] = {
    images.NotAnImage: Kind.NOT_AN_IMAGE,
    images.TooManyPixels: Kind.TOO_LARGE,
    images.CorruptImage: Kind.CORRUPT_IMAGE,
    video.NotAVideo: Kind.NOT_A_VIDEO,
    video.TooMuchVideo: Kind.TOO_LARGE,
    video.CorruptVideo: Kind.CORRUPT_VIDEO,
    limits.InvalidPart: Kind.INVALID_OPTION,
    limits.ExcessivePart: Kind.TOO_LARGE,
}
FAILURE_PROBLEMS = {
    "worker-crashed": Kind.WORKER_CRASHED,
    "model-error": Kind.MODEL_ERROR,
    "deadline": Kind.DEADLINE,
    "unusable-input": Kind.UNUSABLE_INPUT,
}


def of_refusal(error: InvalidOption | MediaError) -> Problem:
    """What a task refuses while it presents."""
    return of_option(error) if isinstance(error, InvalidOption) else of_media(error)


def of_media(error: MediaError, field: str | None = None) -> Problem:
    """field: the part, where the error names none."""
    return Problem(MEDIA_PROBLEMS[type(error)], str(error), error.part or field)


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
