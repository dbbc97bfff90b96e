"""The scripts read only fields that Python sends: in Lua a misspelt one would be nil, which is false."""

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
"""Script, its name for the row that Python sends, the type of the row, and fields that the script adds."""


def name_parameter(value: object) -> str:
    """Name a parameter alike in each process of pytest-xdist, although the order of a set differs."""
    return " ".join(sorted(value)) if isinstance(value, set) else getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("script", "name", "row", "added"), READERS, ids=name_parameter)
def test_scripts_read_only_the_fields_that_python_sends(script: str, name: str, row: type[msgspec.Struct], added: set[str]) -> None:
    code = re.sub(r"--.*", "", (FOLDER / f"{script}.lua").read_text())
    read = set(re.findall(rf"\b{name}\.(\w+)", code))
    assert read
    assert read <= {*row.__struct_fields__, *added}


def test_each_script_has_one_caller() -> None:
    assert set(SCRIPTS) == {path.stem for path in FOLDER.glob("*.lua")}
