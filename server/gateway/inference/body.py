"""Request bodies, taken apart into the parts and options of a task: a form, JSON, or the bytes of one part."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.gateway.fair_executor import BodyExecutor
from server.gateway.inference.admission import RequestContext
from server.gateway.inference.stages import ParsedRequest, TaskInterface, item_field
from server.http.json_outline import JsonOutline, count_placeholders, from_base64
from server.http.problems import Problem, ProblemKind
from server.http.requests import Head, boundary_of, iter_body, read_body
from server.quote import MAX_QUOTED_CHARS
from server.settings import Settings
from server.tasks.base import JSON, TakesSteps, offered_media_types

if TYPE_CHECKING:
    from server.gateway.app_state import GatewayState

MAX_FIELD_BYTES = 4096
"""Maximum size of an option; options are short words."""

T = TypeVar("T")
_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass
class RequestBody:
    """The contents of a body: encoded parts in their order, and options as they were written."""

    interface: TaskInterface
    max_images: int
    parts: dict[str, list[bytes]] = field(default_factory=dict)
    fields: dict[str, list[object]] = field(default_factory=dict)
    urls: dict[str, list[str]] = field(default_factory=dict)
    """URLs by part, which has no content in `parts` until they are fetched."""
    is_raw: bool = False

    def add_part(self, name: str, content: bytes) -> None:
        """Add an element of a part. Raises Problem (413) for one too many."""
        self._add(name, self.parts.setdefault(name, []), content)

    def add_url(self, name: str, url: str) -> None:
        """Add a URL by the name of its field. Raises Problem (413) for one too many."""
        part = self.interface.urls[name]
        self.parts.setdefault(part, [])
        self._add(part, self.urls.setdefault(part, []), url)

    def _add(self, name: str, elements: list[T], element: T) -> None:
        limit = self.interface.parts[name].max_count
        if limit == 1 and elements:
            raise Problem(ProblemKind.INVALID_OPTION, "given twice", name)
        if len(elements) == (self.max_images if limit is None else limit):
            setting = " (OPSIN_MAX_IMAGES)" if limit is None else ""
            raise Problem(ProblemKind.TOO_LARGE, f"more than {len(elements)} {name}s in one request{setting}", name)
        elements.append(element)

    def add_field(self, name: str, value: object) -> None:
        values = self.fields.setdefault(name, [])
        if values and not self.interface.options[name].repeated:
            raise Problem(ProblemKind.INVALID_OPTION, "given twice", name)
        values.append(value)

    def count_items(self) -> int:
        repeated = self.interface.find_repeated(self.parts)
        if repeated is None or self.interface.parts[repeated].is_one_item:
            return 1
        return len(self.parts[repeated] or self.urls[repeated])


async def parse_request(context: RequestContext, interface: TaskInterface, gateway: GatewayState) -> ParsedRequest:
    """Read the options in the URL and the body; then watch whether the client disconnects.

    Raises Problem: 406 before the body is read, and what `read_body` and the reservation raise."""
    head, admission = context.head, gateway.admission
    if context.mode == "answer":
        head.negotiate(interface.offered_media_types(head.query))
    query = interface.read_query(head.query)
    if query.get("priority") == ["low"]:
        await admission.mark_low_priority(context)
    body = await read_request_body(context, interface, gateway.settings, gateway.body_executor)
    common, options = interface.read_options(query, body.fields) if body.fields else interface.options_in_url(head.query)
    if common.priority == "low" and "priority" not in query:
        await admission.mark_low_priority(context)
    if isinstance(interface.task_for(body.parts), TakesSteps) and not context.is_long_running:
        await admission.mark_long_running(context)
    media_type = head.negotiate(offered_media_types(interface.task, options)) if context.mode == "answer" else JSON
    fingerprint = _fingerprint(body, query, head) if context.mode == "job" and head.raw(b"idempotency-key") else ""
    context.watch(gateway.timers)
    return ParsedRequest(context, interface, common, options, body.parts, body.urls, media_type, body.is_raw, fingerprint)


async def read_request_body(
    context: RequestContext, interface: TaskInterface, settings: Settings, body_executor: BodyExecutor
) -> RequestBody:
    """Read multipart, JSON, or else the bytes of one part: Content-Type distinguishes only these three.

    The reservation is set to the number of items. Raises Problem and what `iter_body` raises."""
    head, limit, reservation = context.head, settings.max_body_bytes, context.reservation
    refuse_encoding(head)
    body = RequestBody(interface, settings.max_images)
    if head.media_type.startswith("multipart/"):
        await _read_form(body, boundary_of(head.values(b"content-type")), iter_body(context.receive, limit, reservation))
    else:
        content = await read_body(context.receive, limit, reservation)
        if head.media_type == "application/json" or head.media_type.endswith("+json"):
            await body_executor.run(context.client, len(content), lambda: _read_json(body, content))
        else:
            body.add_part(interface.task.parts[0].name, content)
            body.is_raw = True
    _check(body, fetches=bool(settings.fetch_hosts))
    await reservation.resize(body.count_items(), reservation.nbytes)
    return body


def refuse_encoding(head: Head) -> None:
    """Refuse a compressed body. Raises Problem (415)."""
    if (head.first(b"content-encoding") or "identity").lower() != "identity":
        raise Problem(ProblemKind.UNSUPPORTED_ENCODING, "send the body without Content-Encoding: its parts are compressed already")


def _fingerprint(body: RequestBody, query: Mapping[str, Sequence[object]], head: Head) -> str:
    """Return a SHA-256 that is the same for two requests with the same contents to the same path.

    Random draws, defaults, boundaries and the order of names do not count; the order of a part's elements does. A part that is named by
    URL counts as its URL."""
    digest = hashlib.sha256()

    def add(content: bytes) -> None:
        digest.update(b"%d:" % len(content))
        digest.update(content)

    add(head.path.encode())
    fields = {**query, **body.fields}
    for name in sorted(fields):
        add(name.encode())
        add(msgspec.json.encode(body.interface.options[name].read(fields[name])))
    for name in sorted(body.parts):
        add(f"{name}_url".encode() if name in body.urls else name.encode())
        for content in [url.encode() for url in body.urls[name]] if name in body.urls else body.parts[name]:
            add(content)
    return digest.hexdigest()


def _check(body: RequestBody, *, fetches: bool) -> None:
    for part in body.urls:
        if not fetches:
            raise Problem(
                ProblemKind.INVALID_OPTION, f"fetching URLs is not enabled (OPSIN_FETCH_HOSTS): send `{part}` instead", f"{part}_url"
            )
        if body.parts[part]:
            raise Problem(ProblemKind.INVALID_OPTION, f"cannot be combined with `{part}`: send one of them", f"{part}_url")
    if not any(body.parts.values()) and not body.urls:
        names = " or ".join(f"`{name}`" for name in body.interface.parts)
        raise Problem(ProblemKind.INVALID_OPTION, f"missing: send at least one {names}", body.interface.task.parts[0].name)
    parts = [name for name, elements in body.parts.items() if elements or name in body.urls]
    if body.interface.task_for(parts) is None:
        other = next(name for name in parts if body.interface.task_for([parts[0], name]) is None)
        raise Problem(ProblemKind.INVALID_OPTION, f"cannot be combined with `{parts[0]}`: send one of them", other)
    repeated = [name for name in body.parts if body.interface.parts[name].repeated]
    if len(repeated) > 1:
        raise Problem(ProblemKind.INVALID_OPTION, f"cannot be combined with `{repeated[0]}`: send one of them", repeated[1])
    for name, elements in body.parts.items():
        for index, content in enumerate(elements):
            field = item_field(name, index, len(elements))
            if body.interface.parts[name].kind == "text":
                _check_text(content, field)
            elif not content:
                raise Problem(ProblemKind.INVALID_BODY, f"empty: no bytes of `{name}`", field)


def _check_text(content: bytes, field: str) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise Problem(ProblemKind.INVALID_BODY, f"the text is not UTF-8: {error.reason}", field) from error


async def _read_form(body: RequestBody, boundary: bytes, pieces: AsyncIterator[bytes]) -> None:
    """Read a form part by part while it arrives: an unknown name is refused before the rest comes.

    Raises Problem and what the pieces raise."""
    parts = _FormCallbacks(body)
    callbacks: Any = {name: getattr(parts, name) for name in dir(parts) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(b"--%s\r\n\r\n\r\n" % boundary)  # the parser knows no preamble (RFC 2046, 5.1.1): it reads one as a first part
        async for piece in pieces:
            parser.write(piece)
        parser.finalize()
    except FormParserError as error:
        raise Problem(ProblemKind.INVALID_BODY, f"the body is not multipart with this boundary ({error})") from error
    if parts.in_preamble:
        raise Problem(ProblemKind.INVALID_BODY, f"no line of the body, ended by CRLF, is the boundary --{boundary.decode()}")
    if not parts.complete:
        raise Problem(ProblemKind.INVALID_BODY, "the multipart body ends before its closing boundary")


class _FormCallbacks:
    """Callbacks of the multipart parser: collects each part and files it when it ends."""

    def __init__(self, body: RequestBody) -> None:
        self._body = body
        self._interface = body.interface
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
                raise Problem(ProblemKind.INVALID_BODY, "a part of the form has two headers Content-Disposition", self._name)
            _, options = parse_options_header(self._value)
            self._name = options.get(b"name", b"").decode(errors="replace")
            self._is_file = b"filename" in options
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        if self.in_preamble:
            return
        if self._name is None:
            raise Problem(ProblemKind.INVALID_BODY, "a part of the form has no name in its Content-Disposition")
        self._interface.check_name(self._name)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self.in_preamble:
            return
        self._data += data[start:end]
        if not self._is_part and len(self._data) > MAX_FIELD_BYTES:
            raise Problem(ProblemKind.INVALID_OPTION, f"longer than {MAX_FIELD_BYTES} bytes", self._name)

    def on_part_end(self) -> None:
        if self.in_preamble:
            self.in_preamble = False
            return
        assert self._name is not None
        if self._is_part:
            self._body.add_part(self._name, bytes(self._data))
        elif self._name in self._interface.urls:
            self._body.add_url(self._name, self._text())
        else:
            self._body.add_field(self._name, self._text())

    def _text(self) -> str:
        try:
            return self._data.decode()
        except UnicodeDecodeError as error:
            raise Problem(ProblemKind.INVALID_BODY, f"the field is not UTF-8: {error.reason}", self._name) from error

    def on_end(self) -> None:
        self.complete = True

    @property
    def _is_part(self) -> bool:
        """Whether this is a part: a name that is also an option is the part if it comes as a file."""
        return self._name in self._interface.parts and (self._is_file or self._name not in self._interface.options)


def _read_json(body: RequestBody, content: bytes) -> None:
    """Read parts in base64 (texts as they are), options as values, and repeated names also as lists under their plural. Raises Problem."""
    interface = body.interface
    outline = JsonOutline.parse(content)
    document = decode_fields(outline, f'{{"{interface.task.parts[0].name}": "<base64>"}}')
    for name, written in document.items():
        if name not in interface.parts and name not in interface.plurals:
            interface.check_name(outline.name(name))
            _check_short(len(memoryview(written)) + MAX_FIELD_BYTES * count_placeholders(written), name)
        value = read_field(outline, written, name)
        singular = interface.plurals.get(name)
        if singular is None:
            _add(body, name, value, name)
            continue
        if singular in document:
            raise Problem(ProblemKind.INVALID_OPTION, f"send either `{singular}` or `{name}`", name)
        if not isinstance(value, list):
            raise Problem(ProblemKind.INVALID_OPTION, "must be a list", name)
        if not value and singular in interface.options:
            body.fields[singular] = []  # which the task is to see
        for index, element in enumerate(value):
            _add(body, singular, element, singular if len(value) == 1 else f"{singular}[{index}]")


def decode_fields(outline: JsonOutline, example: str) -> dict[str, msgspec.Raw]:
    """Return the fields of an object, undecoded. example: of such an object. Raises Problem."""
    try:
        fields = _decoder.decode(outline.json)
    except msgspec.ValidationError as error:
        raise Problem(ProblemKind.INVALID_BODY, f"the JSON body must be an object such as {example}") from error
    except msgspec.DecodeError as error:
        raise Problem(ProblemKind.INVALID_BODY, f"not JSON ({error})" if outline.json else "empty") from error
    if len(fields) < outline.fields:  # of a repeated one the decoder keeps the last
        pairs = json.loads(outline.json, object_pairs_hook=list, parse_int=str, strict=False)  # numbers may be of any length
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise Problem(ProblemKind.INVALID_OPTION, "given twice", outline.name(repeated)[:MAX_QUOTED_CHARS])
    return fields


def read_field(outline: JsonOutline, written: msgspec.Raw, name: str) -> Any:
    """Return the value of a field. Raises Problem."""
    try:
        return outline.read(written)
    except msgspec.ValidationError as error:
        raise Problem(ProblemKind.INVALID_OPTION, "a number beyond those of 64 bits", name) from error
    except msgspec.DecodeError as error:
        raise Problem(ProblemKind.INVALID_BODY, f"not JSON ({error})", name) from error


def _check_short(length: int, field: str) -> None:
    if length > MAX_FIELD_BYTES:
        raise Problem(ProblemKind.INVALID_OPTION, f"longer than {MAX_FIELD_BYTES} bytes", field)


def _add(body: RequestBody, name: str, value: object, field: str) -> None:
    if name in body.interface.urls:
        text = _text(str(value, "utf-8") if isinstance(value, memoryview) else value, field)
        _check_short(len(text), field)
        body.add_url(name, text)
        return
    part, option = body.interface.parts.get(name), body.interface.options.get(name)
    if isinstance(value, memoryview):
        if part is not None and part.kind != "text":
            body.add_part(name, decode_base64(value, field))
            return
        value = str(value, "utf-8")
    if value is None and part is None:
        return
    if part is None and isinstance(value, str):
        _check_short(len(value), field)
    if part is None or (option is not None and isinstance(value, str) and option.accepts(value)):
        body.add_field(name, value)
    elif part.kind == "text":
        body.add_part(name, _text(value, field).encode())
    else:
        body.add_part(name, decode_base64(_text(value, field), field))


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise Problem(ProblemKind.INVALID_OPTION, "must be a string: its bytes in base64, or its text if it is one", field)
    return value


def decode_base64(text: str | memoryview, field: str) -> bytes:
    """Return the bytes. Raises Problem (422)."""
    try:
        return from_base64(text)
    except ValueError as error:
        raise Problem(ProblemKind.INVALID_OPTION, f"not valid base64 ({error})", field) from error
