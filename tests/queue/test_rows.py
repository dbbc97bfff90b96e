"""The scripts read fields that Python tells them, and no others: in Lua a misspelt one would be nil, which is false."""

from __future__ import annotations

import re

import pytest

from server.queue import script_rows
from server.queue.resp import FOLDER

READERS = [
    ("enqueue", "admission", script_rows.AdmissionCall, set()),
    ("parts/admission", "bounds", script_rows.Bounds, set()),
    ("enqueue", "request", script_rows.Request, set()),
    ("enqueue", "job", script_rows.Enqueued, {"message"}),
    ("parts/admission", "job", script_rows.Enqueued, {"message", "at"}),
    ("enqueue_record", "asked", script_rows.Recorded, set()),
    ("enqueue_record", "draft", script_rows.Draft, set()),
    ("enqueue_record", "bounds", script_rows.Bounds, set()),
    ("finish", "job", script_rows.Ended, {"reply"}),
    ("parts/records", "ending", script_rows.Ended, {"reply"}),
    ("progress", "job", script_rows.Advanced, {"message"}),
    ("hand_back", "job", script_rows.HandedBack, set()),
]
"""Script, the name that it gives to what it was told, the type of that, and fields that it adds itself."""


def _told(value: object) -> str:
    """Tell a parameter alike in each process of pytest-xdist: the order of a set is another one in each."""
    return " ".join(sorted(value)) if isinstance(value, set) else getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("script", "name", "told", "added"), READERS, ids=_told)
def test_a_script_reads_what_python_tells_it(script: str, name: str, told: type, added: set[str]) -> None:
    code = re.sub(r"--.*", "", (FOLDER / f"{script}.lua").read_text())
    read = set(re.findall(rf"\b{name}\.(\w+)", code))
    assert read
    assert read <= {*told.__struct_fields__, *added}  # type: ignore[attr-defined]
