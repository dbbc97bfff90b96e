"""Request bodies, taken apart into the parts and options of a task: a form, JSON, or the bytes of one part."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from starlette.requests import Request

from server.gateway import form, json_body
from server.gateway.arrival import read, stream
from server.gateway.head import header
from server.gateway.large_bodies import LargeBodies
from server.gateway.problems import Kind, Problem
from server.gateway.surface import Surface
from server.queue.dispatch import Reservation
from server.settings import Settings
from server.tasks.base import Item


@dataclass
class Submission:
    """What a body holds: encoded parts in their order, and options as they were written."""

    surface: Surface
    max_images: int
    parts: dict[str, list[bytes]] = field(default_factory=dict)
    fields: dict[str, list[object]] = field(default_factory=dict)

    def add_part(self, name: str, content: bytes) -> None:
        """Raises Problem (413) for one too many."""
        given = self.parts.setdefault(name, [])
        limit = self.surface.parts[name].max_count
        if limit == 1 and given:
            raise Problem(Kind.INVALID_OPTION, "given twice", name)
        if len(given) == (self.max_images if limit is None else limit):
            setting = " (OPSIN_MAX_IMAGES)" if limit is None else ""
            raise Problem(Kind.TOO_LARGE, f"more than {len(given)} {name}s in one request{setting}", name)
        given.append(content)

    def add_field(self, name: str, value: object) -> None:
        given = self.fields.setdefault(name, [])
        if given and not self.surface.options[name].repeated:
            raise Problem(Kind.INVALID_OPTION, "given twice", name)
        given.append(value)

    @cached_property
    def repeated(self) -> str | None:
        """The part of which each element is an item of its own, if there is one. To be asked when the body has been read."""
        return next((name for name in self.parts if self.surface.parts[name].repeated), None)

    @property
    def nbytes(self) -> int:
        return sum(len(content) for given in self.parts.values() for content in given)

    def take_items(self) -> list[Item]:
        """What is prepared by itself: each element of the repeated part, with the others beside it. From now on the list alone holds them:
        they may be large, and are not needed while their small copies wait."""
        repeated, parts = self.repeated, dict(self.parts)
        self.parts.clear()
        once = {name: given[0] for name, given in parts.items() if not self.surface.parts[name].repeated}
        return [once] if repeated is None else [{repeated: content, **once} for content in parts[repeated]]

    @property
    def count(self) -> int:
        """Number of items."""
        return 1 if self.repeated is None else len(self.parts[self.repeated])


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


def item_field(name: str, index: int, count: int) -> str:
    """How errors name one of several elements of a part."""
    return name if count == 1 else f"{name}[{index}]"


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
