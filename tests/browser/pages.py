"""Chromium pages that must log no error and connect to no other host, and axe-core for accessibility."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Page, Playwright, expect

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
SCREENSHOTS = os.environ.get("OPSIN_SCREENSHOTS")
"""Folder that gets a picture of the page at the end of every test."""
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 180_000
DESKTOP = {"width": 1360, "height": 900}
PHONE = {"width": 390, "height": 844}


@dataclass
class Noise:
    """Actions of a page that are not permitted."""

    console: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    """Requests that left this computer."""


@contextmanager
def chromium(playwright: Playwright) -> Iterator[BrowserContext]:
    with TemporaryDirectory(prefix="opsin-chromium-") as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=list(ARGUMENTS), viewport=DESKTOP, timeout=2 * PATIENCE_MS, accept_downloads=True
        )
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script("try { localStorage.setItem('first-sample', 'yes') } catch {}")  # tests run what they choose themselves
        expect.set_options(timeout=PATIENCE_MS)
        try:
            yield context
        finally:
            context.close()


@contextmanager
def quiet_page(context: BrowserContext, *, refused: bool = False) -> Iterator[Page]:
    """Open a page whose console must stay empty, except for what Chromium itself logs of error answers if `refused`."""
    page, noise = context.new_page(), Noise()

    def listen(message: Any) -> None:
        if message.type in ("error", "warning") and not (refused and "Failed to load resource" in message.text):
            noise.console.append(f"{message.text} ({message.location})")

    page.on("console", listen)
    page.on("pageerror", lambda error: noise.console.append(str(error)))
    page.on("request", lambda request: noise.elsewhere.append(request.url) if leaves(request.url) else None)
    try:
        yield page
    finally:
        if SCREENSHOTS:
            test = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].partition(" ")[0]
            page.screenshot(path=Path(SCREENSHOTS, f"{test}.png"), full_page=True)
        page.close()
    assert noise == Noise(), noise


def leaves(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("blob", "data") and parts.hostname != "127.0.0.1"


@cache
def script() -> str:
    return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()


COLOURS = ("color-contrast",)
"""Rules whose result depends on the theme."""


def violations(page: Page, rules: Sequence[str] = ()) -> list[str]:
    """Return violations, each with its element, of these rules or, if there are none, of all that axe-core runs by default."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(script())
    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    found: list[dict[str, Any]] = page.evaluate("(options) => axe.run(options).then((result) => result.violations)", options)
    return [f"{rule['id']}: {node['html'][:160]} {node['failureSummary']}" for rule in found for node in rule["nodes"]]
