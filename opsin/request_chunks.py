"""Calls with more images or texts than one request may have: they are sent as several requests, and answered as one."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from opsin.api_request import ApiRequest
from opsin.errors import OpsinError
from opsin.image_encoding import ImageLike, encode
from opsin.results import Model

MAX_PART_OVERHEAD_BYTES = 512
"""Headers and boundary of each part of a form."""


@dataclass(frozen=True)
class RequestLimits:
    """Limits of one request."""

    count: int
    """Number of images."""
    nbytes: int
    """Size of its body in bytes."""


ONE_IMAGE = RequestLimits(1, sys.maxsize)
"""One image at a time, of any size: the service rejects it if that is too large."""


@dataclass(frozen=True)
class Chunk:
    """A request with some of the images or texts of a call."""

    request: ApiRequest
    first: int
    """Index of its first image or text in the call."""
    count: int
    total: int
    """Number of images or texts of the whole call."""

    def renumber(self, error: OpsinError) -> OpsinError:
        """Change the error of this request so that it names the image or text by its index in the call, and return it."""
        named = re.fullmatch(r"(image|text)(?:\[(\d+)\])?", error.field or "")
        if self.count == self.total or named is None or (named[2] is None and self.count > 1):
            return error
        before, error.field = named[0], f"{named[1]}[{self.first + int(named[2] or 0)}]"
        if error.detail.startswith(before):
            error.detail = error.field + error.detail.removeprefix(before)
        return error


def limits_of(models: Sequence[Model], tasks: Collection[str]) -> RequestLimits:
    """Return the limits that the service states for bundles of these tasks; `ONE_IMAGE` if it serves none, and will reject the request."""
    for model in models:
        for part in model.details["inputs"]:
            if model.task in tasks and part["name"] == "image":
                return RequestLimits(part["max_count"], part["max_bytes"])
    return ONE_IMAGE


def image_chunks(
    images: Sequence[ImageLike], limits: RequestLimits, make_request: Callable[[tuple[bytes, ...]], ApiRequest]
) -> Iterator[Chunk]:
    """Encode images one by one, and yield requests within the limits.

    Raises TypeError, ValueError or OSError for images that cannot be sent.
    """
    first, encoded, size = 0, list[bytes](), 0
    for index, image in enumerate(images):
        data = encode(image)
        nbytes = len(data) + MAX_PART_OVERHEAD_BYTES
        if encoded and (len(encoded) == limits.count or size + nbytes > limits.nbytes):
            yield Chunk(make_request(tuple(encoded)), first, len(encoded), len(images))
            first, encoded, size = index, [], 0
        encoded.append(data)
        size += nbytes
    yield Chunk(make_request(tuple(encoded)), first, len(encoded), len(images))
