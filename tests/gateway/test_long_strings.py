"""Long strings of JSON are not copied; whatever is read is what any decoder reads."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from server.gateway import long_strings
from server.gateway.long_strings import LONG


def read(text: str) -> Any:
    return long_strings.read(msgspec.json.decode(f'{{"value": {text}}}', type=dict[str, msgspec.Raw])["value"])


def plain(value: Any) -> Any:
    if isinstance(value, memoryview):
        return str(value, "utf-8")
    return [plain(element) for element in value] if isinstance(value, list) else value


LONG_VALUES = ["x" * LONG, "ü" * LONG, 'a"b\\' * LONG, ["x" * LONG, 1, None, "short"], [["x" * LONG]], [0] * LONG, {"in": ["x" * LONG]}]


@pytest.mark.parametrize("value", [*LONG_VALUES, "short", 1.5, None, True, [], {"a": [1]}], ids=lambda value: str(value)[:12])
def test_a_value_reads_as_by_any_decoder(value: Any) -> None:
    assert plain(read(json.dumps(value, ensure_ascii=False))) == value


def test_a_long_string_is_a_view_of_the_body_also_inside_a_list() -> None:
    assert isinstance(read(json.dumps("x" * LONG)), memoryview)
    assert [type(element) for element in read(json.dumps(["x" * LONG, "short"]))] == [memoryview, str]


@pytest.mark.parametrize("text", ['["' + "x" * LONG + '", tru]', '"' + "\\q" * LONG + '"'])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        read(text)
