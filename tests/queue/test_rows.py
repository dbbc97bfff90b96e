"""Python and the Lua scripts agree about the fields of rows and about their order."""

from __future__ import annotations

import re

import pytest

from server.queue import rows
from server.queue.wire import FOLDER

READERS = {
    match[1]: [*re.findall(r"(\w+) = ARGV\[at(?: \+ (\d+))?\]", match[2]), ("", match[3])]
    for path in FOLDER.rglob("*.lua")
    for match in re.finditer(
        r"local function read_(\w+)\(at\)\s+(?:return|local \w+ =) \{(.*?)\}.*?, at \+ (\d+)\s+end", path.read_text(), re.DOTALL
    )
}


@pytest.mark.parametrize("row", [rows.Bounds, rows.Request, rows.Enqueued, rows.Recorded, rows.Ended, rows.Advanced, rows.HandedBack])
def test_a_script_reads_a_row_as_python_writes_it(row: type[tuple[object, ...]]) -> None:
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", row.__name__).lower()
    fields: tuple[str, ...] = row._fields  # type: ignore[attr-defined]
    assert READERS[name] == [*((field, str(place) if place else "") for place, field in enumerate(fields)), ("", str(len(fields)))]
