"""axe-core, the accessibility rules of Deque, as `axe-playwright-python` brings it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from playwright.sync_api import Page


@cache
def script() -> str:
    return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()


COLOURS = ("color-contrast",)
"""Rules of what another theme changes."""


def violations(page: Page, rules: Sequence[str] = ()) -> list[str]:
    """Broken rules, each with the elements that break it. rules: these alone; none: all that axe-core runs by itself."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(script())
    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    found: list[dict[str, Any]] = page.evaluate("(options) => axe.run(options).then((result) => result.violations)", options)
    return [f"{rule['id']}: {node['html'][:160]} {node['failureSummary']}" for rule in found for node in rule["nodes"]]
