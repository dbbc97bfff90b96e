"""Long strings of JSON are not copied; whatever is read is what any decoder reads."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from server.http.json_outline import PIECE_BYTES, JsonOutline
from server.json_scan import CHUNK, LONG, MAX_STRUCTURE_BYTES, TooManyElements, check


def read(text: str) -> Any:
    body = f'{{"value": {text}}}'.encode()
    outline = JsonOutline.parse(body, 10**9)
    return outline.read(msgspec.json.decode(outline.json, type=dict[str, msgspec.Raw])["value"])


def plain(value: Any) -> Any:
    if isinstance(value, memoryview):
        return str(value, "utf-8")
    if isinstance(value, dict):
        return {name: plain(element) for name, element in value.items()}
    return [plain(element) for element in value] if isinstance(value, list) else value


LONG_VALUES = ["x" * LONG, "ü" * LONG, 'a"b\\' * LONG, ["x" * LONG, 1, None, "short"], [["x" * LONG]], [0] * LONG, {"in": ["x" * LONG]}]


@pytest.mark.parametrize("value", [*LONG_VALUES, "short", 1.5, None, True, [], {"a": [1]}], ids=lambda value: str(value)[:12])
def test_a_value_reads_as_by_any_decoder(value: Any) -> None:
    assert plain(read(json.dumps(value, ensure_ascii=False))) == value


def test_a_long_string_is_a_view_of_the_body_also_inside_a_list() -> None:
    assert isinstance(read(json.dumps("x" * LONG)), memoryview)
    assert [type(element) for element in read(json.dumps(["x" * LONG, "short"]))] == [memoryview, str]


@pytest.mark.parametrize("shift", range(14))
@pytest.mark.parametrize("unit", ["\\", '"', "\n", "ü", "\x1f", "\U0001f600", "ab/"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_escapes_and_characters_may_lie_anywhere(unit: str, shift: int, ascii_only: bool) -> None:
    value = "x" * (PIECE_BYTES - 7 + shift) + "\\" + unit * 20 + "x" * 9
    assert plain(read(json.dumps([value], ensure_ascii=ascii_only))) == [value]


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ('{"a": {"a": 1, "b": [{"a:": 2}]}, "a": ":", "b\\":": "{:"}', 3),
        ('{"a": [' + "1," * CHUNK + "1], " + '"b": "' + "x:" * CHUNK + '", "a": 1}', 3),
        ('[{"a": 1}]', 0),
        ("{}", 0),
    ],
)
def test_fields_are_counted_however_often_they_stand(text: str, fields: int) -> None:
    assert JsonOutline.parse(text.encode(), 10**9).fields == fields


def test_a_long_name_or_option_is_no_shorter_for_it() -> None:
    body = json.dumps({"x" * LONG * 2: 1, "y": ["x" * LONG * 2]}).encode()
    outline = JsonOutline.parse(body)
    assert len(outline.json) < 200 and len(outline.strings) == 2


@pytest.mark.parametrize("text", ['["' + "x" * LONG + '", tru]', '"' + "\\q" * LONG + '"'])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        read(text)


def test_long_strings_are_found_wherever_they_start_and_end() -> None:
    strings = ["x" * size for size in (1, LONG, 3, LONG - 1, CHUNK, LONG + 7, 2 * CHUNK + 1, 0, LONG)]
    body = json.dumps(strings).encode()
    assert [body[span].decode() for span in check(body).long] == [text for text in strings if len(text) >= LONG]


def test_what_is_decoded_in_one_go_is_bounded() -> None:
    text = json.dumps("x" * (LONG - 1))
    with pytest.raises(TooManyElements, match="outside of strings"):
        check(f"[{','.join([text] * (MAX_STRUCTURE_BYTES // LONG + 2))}]".encode())
