from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.serve_process import READY, Service, serve
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
START_SECONDS = 300.0

pytest.importorskip("playwright", reason="make test-browser installs it")

from playwright.sync_api import BrowserContext, Page, sync_playwright  # noqa: E402

from tests.browser.pages import chromium, quiet_page  # noqa: E402


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """Service with the starter bundles, which waits for a worker that tests freeze while they check a state."""
    with serve(ROOT / "bundles", worker_grace=START_SECONDS) as running:
        eventually(lambda: any(map(READY.match, running.lines)), "the service is ready", START_SECONDS)
        yield running


@pytest.fixture(scope="session")
def context() -> Iterator[BrowserContext]:
    with sync_playwright() as playwright, chromium(playwright) as running:
        yield running


@pytest.fixture
def page(context: BrowserContext, service: Service) -> Iterator[Page]:
    """The playground, open."""
    with quiet_page(context) as opened:
        opened.goto(service.url)
        opened.get_by_role("tab", name="Classify").wait_for()
        yield opened


@pytest.fixture
def refused(context: BrowserContext, service: Service) -> Iterator[Page]:
    """The playground, open, for tests in which the service refuses something."""
    with quiet_page(context, refused=True) as opened:
        opened.goto(service.url)
        opened.get_by_role("tab", name="Classify").wait_for()
        yield opened
