"""Calls that bring more than one request may: as several requests, whose answers and errors are those of one."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from opsin.api_request import Call
from opsin.errors import OpsinError
from opsin.image_encoding import Picture, encoded
from opsin.results import Model

FRAMING = 512
"""Bytes of a form around each of its parts, at most."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request."""

    count: int
    """Number of images."""
    nbytes: int
    """Bytes of its body."""


ONE = Limits(1, sys.maxsize)
"""One image at a time, whatever its size: the service says if that is too much."""


@dataclass(frozen=True)
class Chunk:
    """A request that brings some of the images or texts of a call."""

    call: Call
    first: int
    """Index of its first image or text in the call."""
    count: int
    total: int
    """Number of images or texts of the whole call."""

    def renumbered(self, error: OpsinError) -> OpsinError:
        """The error of this request, naming the image or text by its index in the call."""
        named = re.fullmatch(r"(image|text)(?:\[(\d+)\])?", error.field or "")
        if self.count == self.total or named is None or (named[2] is None and self.count > 1):
            return error
        before, error.field = named[0], f"{named[1]}[{self.first + int(named[2] or 0)}]"
        if error.detail.startswith(before):
            error.detail = error.field + error.detail.removeprefix(before)
        return error


def limits_of(models: Sequence[Model], tasks: Collection[str]) -> Limits:
    """The limits of requests to bundles of these tasks, as the service tells them; `ONE` where it serves none, and will refuse."""
    for model in models:
        for part in model.details["inputs"]:
            if model.task in tasks and part["name"] == "image":
                return Limits(part["max_count"], part["max_bytes"])
    return ONE


def image_chunks(images: Sequence[Picture], limits: Limits, call: Callable[[tuple[bytes, ...]], Call]) -> Iterator[Chunk]:
    """Requests for encoded images, within the limits. Images are read as they are needed. Raises TypeError, ValueError or OSError for what
    cannot be sent."""
    first, together, size = 0, list[bytes](), 0
    for index, image in enumerate(images):
        data = encoded(image)
        nbytes = len(data) + FRAMING
        if together and (len(together) == limits.count or size + nbytes > limits.nbytes):
            yield Chunk(call(tuple(together)), first, len(together), len(images))
            first, together, size = index, [], 0
        together.append(data)
        size += nbytes
    yield Chunk(call(tuple(together)), first, len(together), len(images))
