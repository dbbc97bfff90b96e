"""The suite itself: it has few helper modules, and proves each line of the queue's contract."""

from __future__ import annotations

import re

from tests.docs.code_blocks import ROOT

MAX_HELPERS = 48
TESTS = ROOT / "tests"


def test_helper_modules_are_few() -> None:
    """What one module of tests uses is written there, and fixtures of a folder are in its `conftest.py`."""
    modules = [path for path in TESTS.rglob("*.py") if not path.is_relative_to(TESTS / "golden")]
    helpers = [str(path.relative_to(ROOT)) for path in modules if not path.name.startswith(("test_", "conftest", "__init__"))]
    assert len(helpers) <= MAX_HELPERS, sorted(helpers)
    assert helpers


def test_every_line_of_the_queue_contract_is_proved() -> None:
    contract = (ROOT / "docs" / "queue.md").read_text(encoding="utf-8").split("## When things break")[1].split("\n## ")[0]
    lines = {int(number) for number in re.findall(r"^(\d+)\. \*\*", contract, re.MULTILINE)}
    sources = [path.read_text(encoding="utf-8") for folder in ("queue", "supervisor") for path in (TESTS / folder).glob("test_*.py")]
    proved = {int(number) for source in sources for number in re.findall(r"@pytest\.mark\.queue_line\((\d+)\)", source)}
    assert lines == proved
