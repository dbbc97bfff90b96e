"""axe-core, the accessibility rules of Deque, as `axe-playwright-python` brings it."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from playwright.sync_api import Page


@cache
def script() -> str:
    return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()


def violations(page: Page) -> list[str]:
    """Broken rules, each with the elements that break it."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(script())
    found: list[dict[str, Any]] = page.evaluate("() => axe.run({ resultTypes: ['violations'] }).then((result) => result.violations)")
    return [f"{rule['id']}: {node['html'][:160]} {node['failureSummary']}" for rule in found for node in rule["nodes"]]
