"""Request bodies, taken apart into the parts and options of a task: a form, JSON, or the bytes of one part."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Receive

from server.gateway.fair_executor import BodyExecutor
from server.gateway.inference.task_interface import TaskInterface
from server.http.json_outline import Outline, from_base64, marks
from server.http.multipart import boundary_of
from server.http.problems import Kind, Problem
from server.http.requests import Head, iter_body, read_body
from server.queue.gateway.reservations import Reservation
from server.quote import MAX_QUOTED_CHARS
from server.settings import Settings
from server.tasks.base import Item, Task
from server.tasks.capabilities import RecallsTexts

MAX_FIELD_BYTES = 4096
"""Limit of one option; options are short words."""

T = TypeVar("T")
_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass
class Submission:
    """The contents of a body: encoded parts in their order, and options as they were written."""

    interface: TaskInterface
    max_images: int
    parts: dict[str, list[bytes]] = field(default_factory=dict)
    fields: dict[str, list[object]] = field(default_factory=dict)
    urls: dict[str, list[str]] = field(default_factory=dict)
    """By part: those that are still to be fetched have no content in `parts`."""
    bare: bool = False
    """Whether its one part was the whole body, which says nothing of what it is."""

    def add_part(self, name: str, content: bytes) -> None:
        """Raises Problem (413) for one too many."""
        self._add(name, self.parts.setdefault(name, []), content)

    def add_url(self, name: str, url: str) -> None:
        """name: of the field. Raises Problem (413) for one too many."""
        part = self.interface.urls[name]
        self.parts.setdefault(part, [])
        self._add(part, self.urls.setdefault(part, []), url)

    def _add(self, name: str, given: list[T], element: T) -> None:
        limit = self.interface.parts[name].max_count
        if limit == 1 and given:
            raise Problem(Kind.INVALID_OPTION, "given twice", name)
        if len(given) == (self.max_images if limit is None else limit):
            setting = " (OPSIN_MAX_IMAGES)" if limit is None else ""
            raise Problem(Kind.TOO_LARGE, f"more than {len(given)} {name}s in one request{setting}", name)
        given.append(element)

    def add_field(self, name: str, value: object) -> None:
        given = self.fields.setdefault(name, [])
        if given and not self.interface.options[name].repeated:
            raise Problem(Kind.INVALID_OPTION, "given twice", name)
        given.append(value)

    @cached_property
    def repeated(self) -> str | None:
        """The part of which each element is an item of its own, if there is one. To be asked when the body has been read."""
        return next((name for name in self.parts if self.interface.parts[name].repeated), None)

    @cached_property
    def task(self) -> Task[Any, Any]:
        """The task that its parts ask for. To be asked when the body has been read."""
        task = self.interface.meant(self.parts)
        assert task is not None, "`read_submission` has refused it"
        return task

    @property
    def nbytes(self) -> int:
        return sum(len(content) for given in self.parts.values() for content in given)

    def take_items(self) -> list[Item]:
        """The items that are prepared by themselves: each element of the repeated part, with the others beside it.

        From now on the list alone holds them: they may be large, and are not needed while their small copies wait."""
        repeated, parts = self.repeated, dict(self.parts)
        self.parts.clear()
        if repeated is not None and self.interface.parts[repeated].is_one_item:
            return [{repeated: msgspec.json.encode([text.decode() for text in parts[repeated]])}]
        once = {name: given[0] for name, given in parts.items() if not self.interface.parts[name].repeated}
        return [once] if repeated is None else [{repeated: content, **once} for content in parts[repeated]]

    @property
    def count(self) -> int:
        """Number of items."""
        if self.repeated is None or self.interface.parts[self.repeated].is_one_item:
            return 1
        return len(self.parts[self.repeated] or self.urls[self.repeated])

    def fingerprint(self, path: str, query: Mapping[str, Sequence[object]]) -> str:
        """SHA-256 that is the same for two requests that ask the same of a path.

        Neither what was drawn at random nor defaults, boundaries or the order of names count; that of a part's elements does. A part that
        is named by URL counts as its URL."""
        digest = hashlib.sha256()

        def add(content: bytes) -> None:
            digest.update(b"%d:" % len(content))
            digest.update(content)

        add(path.encode())
        given = {**query, **self.fields}
        for name in sorted(given):
            add(name.encode())
            add(msgspec.json.encode(self.interface.options[name].read(given[name])))
        for name in sorted(self.parts):
            add(f"{name}_url".encode() if name in self.urls else name.encode())
            for content in [url.encode() for url in self.urls[name]] if name in self.urls else self.parts[name]:
                add(content)
        return digest.hexdigest()


def item_field(name: str, index: int, count: int) -> str:
    """How errors name one of several elements of a part."""
    return name if count == 1 else f"{name}[{index}]"


def job_field(task: Task[Any, Any], part: str, index: int, items: int) -> str:
    """How errors name what a job of a request was made of. index: of its item; items: how many there are, whose jobs come first."""
    if index < items:
        return item_field(part, index, items)
    return task.texts_option if isinstance(task, RecallsTexts) else part


async def read_submission(
    head: Head,
    receive: Receive,
    interface: TaskInterface,
    settings: Settings,
    reservation: Reservation,
    large_bodies: BodyExecutor,
    client: str,
) -> Submission:
    """Read multipart, JSON, or else the bytes of one part: Content-Type distinguishes only these three.

    The reservation is brought to the number of items. Parts named by URL are still to be fetched. Raises Problem and what `iter_body`
    raises.
    """
    refuse_encoding(head)
    submission = Submission(interface, settings.max_images)
    if head.media_type.startswith("multipart/"):
        boundary = boundary_of(head.values(b"content-type"))
        await _read_form(submission, boundary, iter_body(receive, settings.max_body_bytes, reservation))
    else:
        content = await read_body(receive, settings.max_body_bytes, reservation)
        if head.media_type == "application/json" or head.media_type.endswith("+json"):
            await large_bodies.in_turn(client, len(content), lambda: _read_json(submission, content))
        else:
            submission.add_part(interface.task.parts[0].name, content)
            submission.bare = True
    _check(submission, fetches=bool(settings.fetch_hosts))
    await reservation.resize(submission.count, reservation.nbytes)
    return submission


def refuse_encoding(head: Head) -> None:
    """Raises Problem (415) for a compressed body."""
    if (head.first(b"content-encoding") or "identity").lower() != "identity":
        raise Problem(Kind.UNSUPPORTED_ENCODING, "send the body without Content-Encoding: its parts are compressed already")


def _check(submission: Submission, *, fetches: bool) -> None:
    for part in submission.urls:
        if not fetches:
            raise Problem(Kind.INVALID_OPTION, f"this service fetches nothing (OPSIN_FETCH_HOSTS): send `{part}`", f"{part}_url")
        if submission.parts[part]:
            raise Problem(Kind.INVALID_OPTION, f"sent beside `{part}`: send one of them", f"{part}_url")
    if not any(submission.parts.values()) and not submission.urls:
        names = " or ".join(f"`{name}`" for name in submission.interface.parts)
        raise Problem(Kind.INVALID_OPTION, f"missing: send at least one {names}", submission.interface.task.parts[0].name)
    parts = [name for name, given in submission.parts.items() if given or name in submission.urls]
    if submission.interface.meant(parts) is None:
        other = next(name for name in parts if submission.interface.meant([parts[0], name]) is None)
        raise Problem(Kind.INVALID_OPTION, f"sent beside `{parts[0]}`: send one of them", other)
    together = [name for name in submission.parts if submission.interface.parts[name].repeated]
    if len(together) > 1:
        raise Problem(Kind.INVALID_OPTION, f"sent beside `{together[0]}`: send one of them", together[1])
    for name, given in submission.parts.items():
        for index, content in enumerate(given):
            field = item_field(name, index, len(given))
            if submission.interface.parts[name].kind == "text":
                _check_text(content, field)
            elif not content:
                raise Problem(Kind.INVALID_BODY, f"empty: no bytes of `{name}`", field)


def _check_text(content: bytes, field: str) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise Problem(Kind.INVALID_BODY, f"the text is not UTF-8: {error.reason}", field) from error


async def _read_form(submission: Submission, boundary: bytes, pieces: AsyncIterator[bytes]) -> None:
    """Reads a form part by part while it arrives: an unknown name is refused before the rest comes.

    Raises Problem and what the pieces raise."""
    parts = _Parts(submission)
    callbacks: Any = {name: getattr(parts, name) for name in dir(parts) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(b"--%s\r\n\r\n\r\n" % boundary)  # the parser knows no preamble (RFC 2046, 5.1.1): it reads one as a first part
        async for piece in pieces:
            parser.write(piece)
        parser.finalize()
    except FormParserError as error:
        raise Problem(Kind.INVALID_BODY, f"no multipart body with this boundary ({error})") from error
    if parts.in_preamble:
        raise Problem(Kind.INVALID_BODY, f"no line of the body, ended by CRLF, is the boundary --{boundary.decode()}")
    if not parts.complete:
        raise Problem(Kind.INVALID_BODY, "the multipart body ends before its closing boundary")


class _Parts:
    """Callbacks of the multipart parser: collects each part and files it when it ends."""

    def __init__(self, submission: Submission) -> None:
        self._submission = submission
        self._interface = submission.interface
        self._header = b""
        self._value = b""
        self._name: str | None = None
        self._is_file = False
        self._data = bytearray()
        self.in_preamble = True
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
            if self._name is not None:
                raise Problem(Kind.INVALID_BODY, "a part of the form has two headers Content-Disposition", self._name)
            _, options = parse_options_header(self._value)
            self._name = options.get(b"name", b"").decode(errors="replace")
            self._is_file = b"filename" in options
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        if self.in_preamble:
            return
        if self._name is None:
            raise Problem(Kind.INVALID_BODY, "a part of the form has no name in its Content-Disposition")
        self._interface.check_name(self._name)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self.in_preamble:
            return
        self._data += data[start:end]
        if not self._is_part and len(self._data) > MAX_FIELD_BYTES:
            raise Problem(Kind.INVALID_OPTION, f"longer than {MAX_FIELD_BYTES} bytes", self._name)

    def on_part_end(self) -> None:
        if self.in_preamble:
            self.in_preamble = False
            return
        assert self._name is not None
        if self._is_part:
            self._submission.add_part(self._name, bytes(self._data))
        elif self._name in self._interface.urls:
            self._submission.add_url(self._name, self._text())
        else:
            self._submission.add_field(self._name, self._text())

    def _text(self) -> str:
        try:
            return self._data.decode()
        except UnicodeDecodeError as error:
            raise Problem(Kind.INVALID_BODY, f"the field is not UTF-8: {error.reason}", self._name) from error

    def on_end(self) -> None:
        self.complete = True

    @property
    def _is_part(self) -> bool:
        """A name that is both a part and an option is the part where it comes as a file."""
        return self._name in self._interface.parts and (self._is_file or self._name not in self._interface.options)


def _read_json(submission: Submission, content: bytes) -> None:
    """Reads parts in base64 (texts as they are), options as values, and repeated names also as lists under their plural. Raises Problem."""
    interface = submission.interface
    outline = Outline.of(content)
    document = decode_fields(outline, f'{{"{interface.task.parts[0].name}": "<base64>"}}')
    for name, written in document.items():
        if name not in interface.parts and name not in interface.plurals:
            interface.check_name(outline.name(name))
            _check_short(len(memoryview(written)) + MAX_FIELD_BYTES * marks(written), name)
        value = read_field(outline, written, name)
        singular = interface.plurals.get(name)
        if singular is None:
            _add(submission, name, value, name)
            continue
        if singular in document:
            raise Problem(Kind.INVALID_OPTION, f"send either `{singular}` or `{name}`", name)
        if not isinstance(value, list):
            raise Problem(Kind.INVALID_OPTION, "must be a list", name)
        if not value and singular in interface.options:
            submission.fields[singular] = []  # which the task is to see
        for index, element in enumerate(value):
            _add(submission, singular, element, singular if len(value) == 1 else f"{singular}[{index}]")


def decode_fields(outline: Outline, example: str) -> dict[str, msgspec.Raw]:
    """The fields of an object, as they are written. example: of such an object. Raises Problem."""
    try:
        fields = _decoder.decode(outline.json)
    except msgspec.ValidationError as error:
        raise Problem(Kind.INVALID_BODY, f"the JSON body must be an object such as {example}") from error
    except msgspec.DecodeError as error:
        raise Problem(Kind.INVALID_BODY, f"not JSON ({error})" if outline.json else "empty") from error
    if len(fields) < outline.fields:  # of a repeated one the decoder keeps the last
        pairs = json.loads(outline.json, object_pairs_hook=list, parse_int=str, strict=False)  # numbers may be of any length
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise Problem(Kind.INVALID_OPTION, "given twice", outline.name(repeated)[:MAX_QUOTED_CHARS])
    return fields


def read_field(outline: Outline, written: msgspec.Raw, name: str) -> Any:
    """Raises Problem."""
    try:
        return outline.read(written)
    except msgspec.ValidationError as error:
        raise Problem(Kind.INVALID_OPTION, "a number beyond those of 64 bits", name) from error
    except msgspec.DecodeError as error:
        raise Problem(Kind.INVALID_BODY, f"not JSON ({error})", name) from error


def _check_short(length: int, field: str) -> None:
    if length > MAX_FIELD_BYTES:
        raise Problem(Kind.INVALID_OPTION, f"longer than {MAX_FIELD_BYTES} bytes", field)


def _add(submission: Submission, name: str, value: object, field: str) -> None:
    if name in submission.interface.urls:
        text = _text(str(value, "utf-8") if isinstance(value, memoryview) else value, field)
        _check_short(len(text), field)
        submission.add_url(name, text)
        return
    part, option = submission.interface.parts.get(name), submission.interface.options.get(name)
    if isinstance(value, memoryview):
        if part is not None and part.kind != "text":
            submission.add_part(name, decode_base64(value, field))
            return
        value = str(value, "utf-8")
    if value is None and part is None:
        return
    if part is None and isinstance(value, str):
        _check_short(len(value), field)
    if part is None or (option is not None and isinstance(value, str) and option.accepts(value)):
        submission.add_field(name, value)
    elif part.kind == "text":
        submission.add_part(name, _text(value, field).encode())
    else:
        submission.add_part(name, decode_base64(_text(value, field), field))


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise Problem(Kind.INVALID_OPTION, "must be a string: its bytes in base64, or its text if it is one", field)
    return value


def decode_base64(text: str | memoryview, field: str) -> bytes:
    """Raises Problem (422)."""
    try:
        return from_base64(text)
    except ValueError as error:
        raise Problem(Kind.INVALID_OPTION, f"no base64 ({error})", field) from error
