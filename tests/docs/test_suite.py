"""The suite itself: it has few helper modules."""

from __future__ import annotations

from tests.docs.code_blocks import ROOT

MAX_HELPERS = 48
TESTS = ROOT / "tests"


def test_helper_modules_are_few() -> None:
    """What one module of tests uses is written there, and fixtures of a folder are in its `conftest.py`."""
    modules = [path for path in TESTS.rglob("*.py") if not path.is_relative_to(TESTS / "golden")]
    helpers = [str(path.relative_to(ROOT)) for path in modules if not path.name.startswith(("test_", "conftest", "__init__"))]
    assert len(helpers) <= MAX_HELPERS, sorted(helpers)
    assert helpers
