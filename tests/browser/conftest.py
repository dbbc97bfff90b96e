from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bundles import write_tiny_diffmae
from tests.reconstruct.shell import write_shell
from tests.service import READY, Service, eventually, serve

ROOT = Path(__file__).parents[2]
START_SECONDS = 300.0

pytest.importorskip("playwright", reason="make test-browser installs it")

from playwright.sync_api import BrowserContext, Page, sync_playwright  # noqa: E402

from tests.browser.chromium import chromium, quiet_page  # noqa: E402


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starters `flags` and `actions`, `painter`, which inpaints fast and badly, and `shell`, which finds a sphere in everything."""
    root = tmp_path_factory.mktemp("bundles")
    for name in ("flags", "actions", "actions-lart", "movenet"):
        shutil.copytree(ROOT / "bundles" / name, root / name)
    write_tiny_diffmae(root)
    write_shell(root)
    return root


@pytest.fixture(scope="session")
def service(bundles: Path) -> Iterator[Service]:
    with serve(bundles) as running:
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
