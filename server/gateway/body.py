"""Request bodies, taken apart into images and options."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from server.gateway.arrival import read, stream
from server.gateway.options import NAMES, check_name
from server.gateway.problems import Kind, Problem
from server.queue.dispatch import Reservation
from server.settings import Settings

MAX_FIELD_BYTES = 4096
"""Of one option in a form; options are short words."""


@dataclass
class Submission:
    """What a body holds: encoded images in their order, and options as text."""

    images: list[bytes] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)

    def add_image(self, image: bytes, max_images: int) -> None:
        if len(self.images) == max_images:
            raise Problem(Kind.TOO_LARGE, f"more than {max_images} images in one request (OPSIN_MAX_IMAGES)", "image")
        self.images.append(image)

    def add_field(self, name: str, value: str) -> None:
        if name in self.fields:
            raise Problem(Kind.INVALID_OPTION, "given twice", name)
        self.fields[name] = value


async def read_submission(request: Request, settings: Settings, reservation: Reservation) -> Submission:
    """Multipart, JSON, or else the bytes of one image: Content-Type tells only these three apart.

    The reservation is brought to the number of images. Raises Problem and what `stream` raises.
    """
    max_bytes, max_images = settings.max_body_bytes, settings.max_images
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(Kind.UNSUPPORTED_ENCODING, "send the body without Content-Encoding: images are compressed already")
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type.startswith("multipart/"):
        submission = await _read_multipart(content_type, stream(request, max_bytes, reservation), max_images)
    elif media_type == "application/json" or media_type.endswith("+json"):
        submission = await asyncio.to_thread(_parse_json, await read(request, max_bytes, reservation), max_images)
    else:
        submission = Submission([await read(request, max_bytes, reservation)])
    if not submission.images:
        raise Problem(Kind.INVALID_OPTION, "missing: send at least one", "image")
    for index, image in enumerate(submission.images):
        if not image:
            raise Problem(Kind.INVALID_BODY, "empty: no bytes of an image", image_field(index, len(submission.images)))
    await reservation.resize(len(submission.images), reservation.nbytes)
    return submission


def image_field(index: int, count: int) -> str:
    """How errors name an image of a request."""
    return "image" if count == 1 else f"image[{index}]"


class _Parts:
    """Callbacks of the multipart parser: collects each part and files it when it ends."""

    def __init__(self, submission: Submission, max_images: int) -> None:
        self._submission = submission
        self._max_images = max_images
        self._header = b""
        self._value = b""
        self._name: str | None = None
        self._data = bytearray()
        self.complete = False

    def on_part_begin(self) -> None:
        self._name = None
        self._data = bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._name = options.get(b"name", b"").decode(errors="replace")
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        if self._name is None:
            raise Problem(Kind.INVALID_BODY, "a part of the form has no name in its Content-Disposition")
        if self._name != "image":
            check_name(self._name)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
        if self._name != "image" and len(self._data) > MAX_FIELD_BYTES:
            raise Problem(Kind.INVALID_OPTION, f"longer than {MAX_FIELD_BYTES} bytes", self._name)

    def on_part_end(self) -> None:
        if self._name == "image":
            self._submission.add_image(bytes(self._data), self._max_images)
        elif self._name is not None:
            self._submission.add_field(self._name, self._data.decode(errors="replace"))

    def on_end(self) -> None:
        self.complete = True


async def _read_multipart(content_type: str, pieces: AsyncIterator[bytes], max_images: int) -> Submission:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise Problem(Kind.INVALID_BODY, "the Content-Type multipart has no boundary; let your HTTP client write this header")
    submission = Submission()
    parts = _Parts(submission, max_images)
    callbacks: Any = {name: getattr(parts, name) for name in dir(parts) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, callbacks)
        async for piece in pieces:
            parser.write(piece)
        parser.finalize()
    except FormParserError as error:
        raise Problem(Kind.INVALID_BODY, f"no multipart body with this boundary ({error})") from error
    if not parts.complete:
        raise Problem(Kind.INVALID_BODY, "the multipart body ends before its closing boundary, or is empty")
    return submission


def _parse_json(body: bytes, max_images: int) -> Submission:
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise Problem(Kind.INVALID_BODY, f"no JSON ({error})" if body else "empty") from error
    if not isinstance(document, Mapping):
        raise Problem(Kind.INVALID_BODY, 'the JSON body must be an object such as {"image": "<base64>"}')
    submission = Submission()
    images = _json_images(document)
    for index, image in enumerate(images):
        submission.add_image(_from_base64(image, image_field(index, len(images))), max_images)
    for name, value in document.items():
        if name not in ("image", "images"):
            check_name(name)
        if name in NAMES and value is not None:
            submission.add_field(name, _option_text(name, value))
    return submission


def _json_images(document: Mapping[str, Any]) -> list[Any]:
    if "image" in document and "images" in document:
        raise Problem(Kind.INVALID_OPTION, "send either `image` or `images`", "images")
    if "image" in document:
        return [document["image"]]
    images = document.get("images", [])
    if not isinstance(images, list):
        raise Problem(Kind.INVALID_OPTION, "must be a list of base64 strings", "images")
    return images


def _from_base64(value: Any, field_name: str) -> bytes:
    if not isinstance(value, str):
        raise Problem(Kind.INVALID_OPTION, "must be a string: the image's bytes in base64", field_name)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(Kind.INVALID_OPTION, f"no base64 ({error})", field_name) from error


def _option_text(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Problem(Kind.INVALID_OPTION, "must be a string or an integer", name)
    return str(value)
