"""The scripts read fields that Python tells them, and no others: in Lua a misspelt one would be nil, which is false."""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import Any

import msgspec
import pytest

import server.queue
from server.queue import script as script_types
from server.queue.record import RecordDraft
from server.queue.script import FOLDER, Script

MODULES = [importlib.import_module(module.name) for module in pkgutil.walk_packages(server.queue.__path__, "server.queue.")]
SCRIPTS = {value.name: value for module in MODULES for value in vars(module).values() if isinstance(value, Script)}
READERS: list[tuple[str, str, Any, set[str]]] = [
    *(
        (name, "args", script.args, set())
        for name, script in SCRIPTS.items()
        if script.args is not script_types.BatchEnd and hasattr(script.args, "__struct_fields__")
    ),
    ("parts/endings", "batch", script_types.BatchEnd, set()),
    ("parts/admission", "bounds", script_types.Bounds, set()),
    ("parts/admission", "claim", script_types.Claim, set()),
    ("parts/admission", "promised", script_types.Promises, set()),
    ("check_admission", "claim", script_types.Claim, set()),
    ("enqueue", "request", script_types.RequestRow, set()),
    ("enqueue", "job", script_types.JobRow, {"message"}),
    ("parts/admission", "job", script_types.JobRow, {"message", "at"}),
    ("enqueue_record", "draft", RecordDraft, set()),
    ("enqueue_record", "bounds", script_types.Bounds, set()),
    ("parts/endings", "job", script_types.EndedRow, {"reply"}),
    ("parts/records", "ending", script_types.EndedRow, {"reply"}),
    ("progress", "job", script_types.ProgressRow, {"message"}),
    ("requeue", "job", script_types.ReturnedRow, set()),
]
"""Script, the name that it gives to what it was told, the type of that, and fields that it adds itself."""


def _told(value: object) -> str:
    """Tell a parameter alike in each process of pytest-xdist: the order of a set is another one in each."""
    return " ".join(sorted(value)) if isinstance(value, set) else getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("script", "name", "told", "added"), READERS, ids=_told)
def test_a_script_reads_what_python_tells_it(script: str, name: str, told: type[msgspec.Struct], added: set[str]) -> None:
    code = re.sub(r"--.*", "", (FOLDER / f"{script}.lua").read_text())
    read = set(re.findall(rf"\b{name}\.(\w+)", code))
    assert read
    assert read <= {*told.__struct_fields__, *added}


def test_each_script_has_one_caller() -> None:
    assert set(SCRIPTS) == {path.stem for path in FOLDER.glob("*.lua")}
