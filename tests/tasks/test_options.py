"""Tables of options: every type that they may have, from text and from JSON."""

from __future__ import annotations

from typing import Annotated, Literal

import jsonschema
import msgspec
import pytest
from msgspec import Meta

from server.tasks.options import InvalidOption, Option, RequestOptions, option_rows


class Table(RequestOptions, frozen=True, kw_only=True):
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1, description="Noise.", extra={"default": "drawn"})] | None = None
    eta: Annotated[float, Meta(ge=0, le=1)] = 0.5
    threshold: Annotated[float, Meta(gt=0)] | None = None
    trace: bool = False
    sampler: Literal["ddim", "ancestral"] = "ddim"
    template: Annotated[str, Meta(max_length=8)] | None = None
    label: Annotated[list[Annotated[str, Meta(max_length=4)]], Meta(max_length=3)] = msgspec.field(default_factory=list)
    merge: int | str | None = None


ROWS = {row.name: row for row in option_rows(Table)}


@pytest.mark.parametrize(
    ("name", "values", "value"),
    [
        ("seed", ["9223372036854775807"], 2**63 - 1),
        ("seed", [0], 0),
        ("eta", ["0"], 0.0),
        ("eta", ["1e-3"], 0.001),
        ("eta", [1], 1.0),
        ("threshold", ["0.1"], 0.1),
        ("trace", ["true"], True),
        ("trace", ["0"], False),
        ("trace", [True], True),
        ("sampler", ["ancestral"], "ancestral"),
        ("template", ["a {}"], "a {}"),
        ("template", ["null"], "null"),
        ("label", ["cat", "dog"], ["cat", "dog"]),
        ("label", ["cat"], ["cat"]),
        ("merge", ["off"], "off"),
        ("merge", [3], 3),
    ],
)
def test_values_come_as_text_or_as_json(name: str, values: list[object], value: object) -> None:
    read = ROWS[name].read(values)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("seed", ["9223372036854775808"], "an integer from 0 to 9223372036854775807"),
        ("seed", ["-1"], "an integer from 0"),
        ("seed", ["null"], "an integer"),
        ("eta", ["1.5"], "a number from 0 to 1"),
        ("eta", ["nan"], "a number from 0 to 1"),
        ("eta", ["much"], "a number"),
        ("eta", [True], "a number"),
        ("threshold", ["0"], "a number above 0"),
        ("threshold", ["inf"], "a number above 0"),
        ("threshold", ["nan"], "a number above 0"),
        ("trace", ["yes"], "true or false"),
        ("sampler", ["DDIM"], "one of ddim, ancestral"),
        ("template", ["much too long"], "text of at most 8 characters"),
        ("label", ["horse"], "at most 3 times text of at most 4 characters"),
        ("label", ["a", "b", "c", "d"], "at most 3 times"),
        ("merge", [True], "an integer or text"),
        ("merge", [1.5], "an integer or text"),
        ("eta", ["0.1", "0.2"], "twice"),
        ("template", ["long " * 1000], "^.{1,200}$"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(name: str, values: list[object], words: str) -> None:
    with pytest.raises(InvalidOption, match=words) as refusal:
        ROWS[name].read(values)
    assert refusal.value.field == name


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_row_has_a_schema_that_is_one(row: Option) -> None:
    jsonschema.Draft202012Validator.check_schema(row.schema)
    if "default" in row.schema:
        jsonschema.validate(row.schema["default"], row.schema)


def test_rows_say_what_they_are_in_the_order_of_the_table() -> None:
    assert list(ROWS) == ["seed", "eta", "threshold", "trace", "sampler", "template", "label", "merge"]
    assert (ROWS["seed"].description, ROWS["seed"].default) == ("Noise.", "drawn")
    assert (ROWS["trace"].values, ROWS["trace"].default) == ("true or false", "false")
    assert (ROWS["sampler"].values, ROWS["sampler"].schema["enum"]) == ("`ddim`, `ancestral`", ["ddim", "ancestral"])
    assert [name for name, row in ROWS.items() if row.repeated] == ["label"]
