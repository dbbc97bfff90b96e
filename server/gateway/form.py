"""Forms (multipart), read part by part while they arrive: a name that is none is refused before the rest comes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.gateway.submission import MAX_FIELD_BYTES, Submission
from server.http.problems import Kind, Problem


async def read_into(submission: Submission, content_type: str, pieces: AsyncIterator[bytes]) -> None:
    """Raises Problem and what the pieces raise."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise Problem(Kind.INVALID_BODY, "the Content-Type multipart has no boundary; let your HTTP client write this header")
    parts = _Parts(submission)
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


class _Parts:
    """Callbacks of the multipart parser: collects each part and files it when it ends."""

    def __init__(self, submission: Submission) -> None:
        self._submission = submission
        self._surface = submission.surface
        self._header = b""
        self._value = b""
        self._name: str | None = None
        self._is_file = False
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
            self._is_file = b"filename" in options
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        if self._name is None:
            raise Problem(Kind.INVALID_BODY, "a part of the form has no name in its Content-Disposition")
        self._surface.check_name(self._name)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
        if not self._is_part and len(self._data) > MAX_FIELD_BYTES:
            raise Problem(Kind.INVALID_OPTION, f"longer than {MAX_FIELD_BYTES} bytes", self._name)

    def on_part_end(self) -> None:
        assert self._name is not None
        if self._is_part:
            self._submission.add_part(self._name, bytes(self._data))
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
        return self._name in self._surface.parts and (self._is_file or self._name not in self._surface.options)
