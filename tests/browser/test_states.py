"""Every state of every tab: what it shows, that it fits a phone, and that axe finds no violation in either theme.

If a state would pass too quickly, the worker is frozen while it is checked.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Locator, Page, expect

from server import playground
from tests.browser import pages
from tests.browser.conftest import ROOT
from tests.browser.pages import DESKTOP, PHONE, quiet_page
from tests.browser.tabs import (
    LONG_SPACING,
    choose,
    long_sample,
    open_3d,
    open_actions,
    open_classify,
    open_inpaint,
    open_status,
    run,
    start,
)
from tests.support.serve_process import Service, frozen

pytestmark = pytest.mark.browser
BRAZIL = (ROOT / "server" / "playground" / "samples" / "brazil.png").read_bytes()
NARROW_BYTES_S = 2_000
AHEAD = 3
DARK_RULES = pages.COLOURS
"""Rules that are checked in the dark theme; all if it is empty."""


@pytest.fixture(autouse=True, params=[pages.COLOURS, pytest.param((), marks=pytest.mark.slow)], ids=["colours", "all rules"])
def dark_rules(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules of the dark theme: all of them only in the slow run."""
    monkeypatch.setattr(sys.modules[__name__], "DARK_RULES", request.param)


def look(page: Page, state: str) -> None:
    """Check the current page on a desktop in both themes, and on a phone."""
    found = pages.violations(page)
    page.emulate_media(color_scheme="dark")
    found += pages.violations(page, DARK_RULES)
    page.set_viewport_size(PHONE)
    try:
        page.wait_for_function("(width) => innerWidth === width", arg=PHONE["width"])
        width = page.evaluate("() => document.documentElement.scrollWidth")
        if page.get_by_role("button", name="Run", exact=True).count():
            expect(page.get_by_role("button", name="Run", exact=True)).to_be_in_viewport()
            expect(page.get_by_role("button", name="Stop", exact=True)).to_be_in_viewport()
    finally:
        page.set_viewport_size(DESKTOP)
        page.emulate_media(color_scheme="light")
    assert found == [], state
    assert width <= PHONE["width"], state


def stand_in_line(service: Service) -> None:
    """Queue jobs before the page's, while the worker is frozen."""
    for _ in range(AHEAD):
        httpx2.post(
            f"{service.url}/v1/classify?model=flags", content=BRAZIL, headers={"Prefer": "respond-async"}, timeout=60
        ).raise_for_status()


def says(panel: Locator, words: str | re.Pattern[str]) -> None:
    """Expect these words in the status line, which screen readers read out later."""
    expect(panel.locator("p.line")).to_contain_text(words)


def reads(panel: Locator, words: str | re.Pattern[str]) -> None:
    """Expect that screen readers read these words out."""
    expect(panel.locator("p[role=status].unseen")).to_contain_text(words)


def keeps_waiting(panel: Locator) -> None:
    expect(panel.get_by_role("button", name="Run", exact=True)).to_be_disabled()
    expect(panel.get_by_role("button", name="Stop", exact=True)).to_be_enabled()


def can_run(panel: Locator) -> None:
    expect(panel.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    expect(panel.get_by_role("button", name="Stop", exact=True)).to_be_disabled()


def waits_in_the_queue(page: Page, panel: Locator, service: Service) -> None:
    with frozen(service.children("worker")[0]):
        start(panel)
        says(panel, "in the queue")
        look(page, "queued")


def runs_and_stops(page: Page, panel: Locator, service: Service, progress: str, stopped: str, read_out: str | None = None) -> None:
    """Check a run in progress and stop it. `progress` and `read_out` are patterns of the status line and of what is read out."""
    with frozen(service.children("worker")[0]):
        says(panel, re.compile(progress))
        if read_out is not None:
            reads(panel, re.compile(read_out))
        keeps_waiting(panel)
        look(page, "running")
        panel.get_by_role("button", name="Stop", exact=True).click()
        says(panel, stopped)


def is_reported(panel: Locator, *downloads: str) -> None:
    """Check what is shown under every result: the timing, the request's id, the same call as code, and the downloads."""
    report = panel.locator(".report")
    expect(report.locator(".timing")).to_contain_text("in the service, batch of")
    for phase in ("prepare", "queue", "batch", "model"):
        expect(report.locator(".legend")).to_contain_text(re.compile(rf"{phase} [\d.]+ m?s"))
    expect(report.locator(".id code")).to_have_text(re.compile(r"^[\w-]{8,}$"))
    report.get_by_text("The same call").click()
    for language in ("curl", "Python", "Command"):
        expect(report.get_by_role("region", name=f"The same call: {language}")).to_be_visible()
    for name in downloads:
        expect(report.get_by_role("button", name=name)).to_be_enabled()


@contextmanager
def narrow_line(page: Page) -> Iterator[None]:
    devtools = page.context.new_cdp_session(page)
    devtools.send("Network.enable")
    conditions = {"offline": False, "latency": 0, "downloadThroughput": -1}
    devtools.send("Network.emulateNetworkConditions", {**conditions, "uploadThroughput": NARROW_BYTES_S})
    try:
        yield
    finally:
        devtools.send("Network.emulateNetworkConditions", {**conditions, "uploadThroughput": -1})
        devtools.detach()


def noise() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_classify(refused: Page, context: BrowserContext, service: Service) -> None:
    page = refused
    panel = open_classify(page, picture=None)
    says(panel, "Choose an image, or run one of the samples.")
    expect(panel.get_by_role("button", name="Run")).to_be_disabled()
    look(page, "empty")

    panel.locator("input[type=file]").set_input_files({"name": "noise.png", "mimeType": "image/png", "buffer": noise()})
    can_run(panel)
    look(page, "chosen")

    with narrow_line(page):
        start(panel)
        says(panel, re.compile(r"Sent \d+ kB of \d+ kB"))
        keeps_waiting(panel)
        look(page, "uploading")
        page.keyboard.press("Escape")
        says(panel, "Stopped")
    reads(panel, "Stopped")
    can_run(panel)
    look(page, "stopped")

    with frozen(service.children("worker")[0]):
        stand_in_line(service)
        page.keyboard.press("Control+Enter")
        says(panel, re.compile(r"Position [123] in the queue"))
        reads(panel, re.compile(r"Position [123] in the queue"))
        look(page, "queued")
        panel.get_by_role("button", name="Stop", exact=True).click()
        says(panel, "Stopped")

    panel.locator("input[type=file]").set_input_files({"name": "cut.png", "mimeType": "image/png", "buffer": BRAZIL[:900]})
    start(panel)
    expect(panel.get_by_role("alert")).to_contain_text("truncated")
    expect(panel.get_by_role("alert")).to_contain_text("Correct what the message names")
    look(page, "error")

    choose(panel, "brazil.png")
    context.set_offline(True)
    try:
        start(panel)
        expect(panel.get_by_role("alert")).to_contain_text("cannot be reached")
        look(page, "gateway out of reach")
    finally:
        context.set_offline(False)

    panel.get_by_label("Compare with merging off").check()
    run(panel)
    expect(panel.get_by_role("alert")).to_be_hidden()
    is_reported(panel, "Download JSON")
    reads(panel, "Done in")
    look(page, "done")

    choose(panel, "nepal.png")
    expect(panel.locator(".earlier")).to_be_visible()
    look(page, "an answer to an earlier input")
    panel.locator("input[type=file]").set_input_files(playground.SAMPLES / "figures.mp4")
    expect(panel.locator(".refusal")).to_contain_text("Open it in Actions")
    look(page, "a file that is refused")


def test_a_page_that_has_nothing_to_show(context: BrowserContext, service: Service) -> None:
    with quiet_page(context, refused=True) as page:
        page.route("**/tasks/classify/tab.js", lambda route: route.abort())
        page.goto(service.url)
        expect(page.get_by_role("alert")).to_contain_text("This tab could not be loaded.")
        look(page, "a tab that could not load")
        page.route("**/v1/models", lambda route: route.fulfill(json={"models": [], "folders": ["/srv/bundles"]}))
        page.reload()
        expect(page.locator("#waiting")).to_contain_text("There are no bundles in /srv/bundles")
        look(page, "no bundle")


def test_inpaint(refused: Page, service: Service) -> None:
    page = refused
    panel = open_inpaint(page, picture=None)
    says(panel, "Choose an image, or run one of the samples.")
    look(page, "empty")

    open_inpaint(page)
    can_run(panel)
    look(page, "chosen")

    panel.get_by_label("Preset").select_option("full")
    waits_in_the_queue(page, panel, service)
    expect(panel.locator(".frames .caption")).to_contain_text("preview")
    runs_and_stops(
        page, panel, service, progress=r"Step \d+ of 1000 · \d+\.\d s", stopped="Stopped at step", read_out=r"Step|Next in the queue"
    )
    expect(panel.locator(".frames .caption")).to_contain_text("Stopped at step")
    can_run(panel)
    look(page, "stopped")

    panel.get_by_label("Steps", exact=True).fill("5000")
    start(panel)
    expect(panel.get_by_role("alert")).to_contain_text("1000")
    expect(panel.locator(".tools")).to_contain_text("1,368 of 9,216 pixels will be filled")
    look(page, "error")

    panel.get_by_label("Steps", exact=True).fill("10")
    run(panel)
    expect(panel.get_by_role("alert")).to_be_hidden()
    is_reported(panel, "Download PNG", "Download mask")
    look(page, "done")
    panel.get_by_role("button", name="Invert").click()
    expect(panel.locator(".earlier")).to_be_visible()
    look(page, "an answer to an earlier input")


def test_3d(refused: Page, service: Service) -> None:
    page = refused
    panel = open_3d(page, picture=None)
    says(panel, "Choose an image, or run one of the samples.")
    look(page, "empty")

    open_3d(page, spacing=LONG_SPACING)
    mode = panel.get_by_label(re.compile("^Mode(?!l)"))
    mode.select_option("dense")
    can_run(panel)
    look(page, "chosen")

    waits_in_the_queue(page, panel, service)
    expect(panel.locator(".shape")).to_contain_text("points shown")
    runs_and_stops(page, panel, service, progress=r"Level \d+ of \d+ · ", stopped="Stopped at level")
    expect(panel.locator(".shape")).to_contain_text("Stopped at level")
    expect(panel.locator(".space canvas")).to_be_visible()
    look(page, "stopped")

    panel.get_by_label("Threshold").fill("7")
    start(panel)
    expect(panel.get_by_role("alert")).to_contain_text("threshold")
    look(page, "error")

    panel.get_by_label("Threshold").fill("0.1")
    mode.select_option("adaptive")
    open_3d(page)
    run(panel)
    expect(panel.get_by_role("alert")).to_be_hidden()
    is_reported(panel, "Download GLB", "Download PLY")
    look(page, "done")
    choose(panel, "duck.png", "duck-depth.png")
    expect(panel.locator(".earlier")).to_be_visible()
    look(page, "an answer to an earlier input")


def test_actions(refused: Page, service: Service) -> None:
    page = refused
    panel = open_actions(page, sample=False, seconds=None)
    says(panel, "Choose a clip, or run the sample.")
    look(page, "empty")

    open_actions(page, seconds=None)
    can_run(panel)
    look(page, "chosen")
    panel.locator("input[type=file]").set_input_files(long_sample())
    can_run(panel)

    waits_in_the_queue(page, panel, service)
    expect(panel.locator(".segment").first).to_be_visible()
    runs_and_stops(page, panel, service, progress=r"Window \d+ of \d+ · ", stopped="Stopped at window")
    expect(panel.locator("figure .caption")).to_contain_text("Stopped at window")
    expect(panel.locator(".segment").first).to_be_visible()
    look(page, "stopped")

    panel.locator("input[type=file]").set_input_files({"name": "notes.mp4", "mimeType": "video/mp4", "buffer": b"no video at all" * 99})
    expect(panel).to_contain_text("This browser cannot play notes.mp4")
    start(panel)
    expect(panel.get_by_role("alert")).to_contain_text("video")
    look(page, "error")

    open_actions(page, seconds=2)
    run(panel)
    expect(panel.get_by_role("alert")).to_be_hidden()
    is_reported(panel, "Download JSON", "Download MP4")
    look(page, "done")


def test_status(refused: Page, context: BrowserContext, service: Service) -> None:
    page = refused
    open_status(page)  # a frozen worker is soon not listed any more
    with frozen(service.children("worker")[0]):
        stand_in_line(service)
        expect(page.locator("#queue")).to_contain_text("flags@1.0.0")
        expect(page.locator("#jobs")).to_contain_text("flags@1.0.0")
        look(page, "busy")
    expect(page.locator("#queue")).to_have_text("The queue is empty.")
    expect(page.locator("#jobs")).to_have_text("No asynchronous job is in progress.")
    look(page, "idle")
    page.get_by_label("Logarithmic").check()
    page.locator(".plot").first.focus()
    page.keyboard.press("ArrowLeft")
    look(page, "a moment, on logarithmic scales")
    context.set_offline(True)
    try:
        expect(page.get_by_role("alert")).to_contain_text("The figures below are out of date")
        look(page, "gateway out of reach")
    finally:
        context.set_offline(False)
    expect(page.get_by_role("alert")).to_be_hidden()
