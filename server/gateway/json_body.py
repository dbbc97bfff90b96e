"""JSON bodies: parts in base64 (texts as they are), options as values, repeated names also as lists under their plural."""

from __future__ import annotations

from typing import Any

import msgspec

from server.gateway.submission import MAX_FIELD_BYTES, Submission
from server.http.large_json import Outline, from_base64, marks
from server.http.problems import Kind, Problem

_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_into(submission: Submission, content: bytes) -> None:
    """Raises Problem."""
    surface = submission.surface
    outline = Outline.of(content)
    document = _decode(outline.json, example=surface.task.parts[0].name)
    for name, written in document.items():
        if name not in surface.parts and name not in surface.plurals:
            surface.check_name(outline.name(name))
            _check_short(len(memoryview(written)) + MAX_FIELD_BYTES * marks(written), name)
        value = _value(outline, written, name)
        singular = surface.plurals.get(name)
        if singular is None:
            _add(submission, name, value, name)
            continue
        if singular in document:
            raise Problem(Kind.INVALID_OPTION, f"send either `{singular}` or `{name}`", name)
        if not isinstance(value, list):
            raise Problem(Kind.INVALID_OPTION, "must be a list", name)
        for index, element in enumerate(value):
            _add(submission, singular, element, singular if len(value) == 1 else f"{singular}[{index}]")


def _decode(content: bytes, example: str) -> dict[str, msgspec.Raw]:
    try:
        return _decoder.decode(content)
    except msgspec.ValidationError as error:
        raise Problem(Kind.INVALID_BODY, f'the JSON body must be an object such as {{"{example}": "<base64>"}}') from error
    except msgspec.DecodeError as error:
        raise Problem(Kind.INVALID_BODY, f"not JSON ({error})" if content else "empty") from error


def _value(outline: Outline, written: msgspec.Raw, name: str) -> Any:
    try:
        return outline.read(written)
    except msgspec.ValidationError as error:
        raise Problem(Kind.INVALID_OPTION, "a number beyond those of 64 bits", name) from error
    except msgspec.DecodeError as error:
        raise Problem(Kind.INVALID_BODY, f"not JSON ({error})") from error


def _check_short(length: int, field: str) -> None:
    if length > MAX_FIELD_BYTES:
        raise Problem(Kind.INVALID_OPTION, f"longer than {MAX_FIELD_BYTES} bytes", field)


def _add(submission: Submission, name: str, value: object, field: str) -> None:
    part, option = submission.surface.parts.get(name), submission.surface.options.get(name)
    if isinstance(value, memoryview):
        if part is not None and part.kind != "text":
            submission.add_part(name, _from_base64(value, field))
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
        submission.add_part(name, _from_base64(_text(value, field), field))


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise Problem(Kind.INVALID_OPTION, "must be a string: its bytes in base64, or its text if it is one", field)
    return value


def _from_base64(text: str | memoryview, field: str) -> bytes:
    try:
        return from_base64(text)
    except ValueError as error:
        raise Problem(Kind.INVALID_OPTION, f"no base64 ({error})", field) from error
