"""The repository itself: its tests have few helper modules, `models/` has few entries, and each line of the queue's contract is proved."""

from __future__ import annotations

import re

from tests.docs.code_blocks import ROOT

MAX_HELPERS = 49
MAX_MODELS_ENTRIES = 16
TESTS = ROOT / "tests"


def test_helper_modules_are_few() -> None:
    """Helpers of one module of tests are in it, and fixtures of a folder are in its `conftest.py`."""
    modules = [path for path in TESTS.rglob("*.py") if not path.is_relative_to(TESTS / "golden")]
    helpers = [str(path.relative_to(ROOT)) for path in modules if not path.name.startswith(("test_", "conftest", "__init__"))]
    assert len(helpers) <= MAX_HELPERS, sorted(helpers)
    assert helpers


def test_models_has_few_entries() -> None:
    """A new module goes into the folder of its subject; only what many folders use is at the top."""
    entries = {path.name for path in (ROOT / "models").iterdir()} - {"__init__.py", "__pycache__", "README.md"}
    assert len(entries) <= MAX_MODELS_ENTRIES, sorted(entries)
    assert "registry.py" in entries


def test_every_line_of_the_queue_contract_is_proved() -> None:
    contract = (ROOT / "docs" / "queue.md").read_text(encoding="utf-8").split("## When things break")[1].split("\n## ")[0]
    lines = {int(number) for number in re.findall(r"^(\d+)\. \*\*", contract, re.MULTILINE)}
    sources = [path.read_text(encoding="utf-8") for folder in ("queue", "supervisor") for path in (TESTS / folder).glob("test_*.py")]
    proved = {int(number) for source in sources for number in re.findall(r"@pytest\.mark\.queue_line\((\d+)\)", source)}
    assert lines == proved
