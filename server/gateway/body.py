"""Request bodies, taken apart into the parts and options of a task: a form, JSON, or the bytes of one part."""

from __future__ import annotations

from starlette.requests import Request

from server.gateway import form, json_body
from server.gateway.large_bodies import LargeBodies
from server.gateway.submission import Submission, item_field
from server.gateway.surface import Surface
from server.http.problems import Kind, Problem
from server.http.requests import header, read, stream
from server.queue.dispatch import Reservation
from server.settings import Settings


async def read_submission(
    request: Request, surface: Surface, settings: Settings, reservation: Reservation, large_bodies: LargeBodies
) -> Submission:
    """Multipart, JSON, or else the bytes of one part: Content-Type tells only these three apart.

    The reservation is brought to the number of items. Raises Problem and what `stream` raises.
    """
    if (header(request, b"content-encoding") or "identity").lower() != "identity":
        raise Problem(Kind.UNSUPPORTED_ENCODING, "send the body without Content-Encoding: its parts are compressed already")
    content_type = header(request, b"content-type") or ""
    media_type = content_type.partition(";")[0].strip().lower()
    submission = Submission(surface, settings.max_images)
    if media_type.startswith("multipart/"):
        await form.read_into(submission, content_type, stream(request, settings.max_body_bytes, reservation))
    else:
        content = await read(request, settings.max_body_bytes, reservation)
        if media_type == "application/json" or media_type.endswith("+json"):
            client = request.scope["state"]["client"]
            await large_bodies.in_turn(client, len(content), lambda: json_body.read_into(submission, content))
        else:
            submission.add_part(surface.task.parts[0].name, content)
    _check(submission)
    await reservation.resize(submission.count, reservation.nbytes)
    return submission


def _check(submission: Submission) -> None:
    if not any(submission.parts.values()):
        names = " or ".join(f"`{name}`" for name in submission.surface.parts)
        raise Problem(Kind.INVALID_OPTION, f"missing: send at least one {names}", submission.surface.task.parts[0].name)
    together = [name for name in submission.parts if submission.surface.parts[name].repeated]
    if len(together) > 1:
        raise Problem(Kind.INVALID_OPTION, f"send either `{together[0]}` or `{together[1]}`", together[1])
    for name, given in submission.parts.items():
        for index, content in enumerate(given):
            if not content:
                raise Problem(Kind.INVALID_BODY, f"empty: no bytes of `{name}`", item_field(name, index, len(given)))
