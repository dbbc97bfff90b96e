"""The pictures of docs/playground.md, taken from a running service: `python -m tests.browser.pictures http://127.0.0.1:8000`."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

from tests.browser.chromium import DESKTOP, PHONE, chromium

FOLDER = Path(__file__).parents[2] / "docs" / "pictures" / "playground"
TABLET = {"width": 1000, "height": 900}


def run(page: Page, tab: str, sample: str) -> None:
    page.get_by_role("tab", name=tab).click()
    panel = page.get_by_role("tabpanel", name=tab)
    panel.get_by_role("button", name=sample).click()
    panel.get_by_role("button", name="Run").click()
    expect(panel.locator("p.line")).to_contain_text("Done in")


def take(context: BrowserContext, url: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    page = context.pages[0]
    page.set_viewport_size(DESKTOP)
    page.goto(url)
    page.get_by_label("Compare with merging off").check()
    run(page, "Classify", "Flag of Brazil")
    page.screenshot(path=FOLDER / "classify.png", full_page=True)

    page.set_viewport_size(TABLET)
    page.emulate_media(color_scheme="dark")
    run(page, "Inpaint", "Drawing of a ladybug")
    page.mouse.move(0, 0)
    page.screenshot(path=FOLDER / "inpaint.png", full_page=True)

    page.set_viewport_size(DESKTOP)
    page.emulate_media(color_scheme="light")
    run(page, "Actions", "Two drawn figures")
    page.get_by_role("tabpanel", name="Actions").get_by_role("button", name="Person 2: ").nth(1).click()
    page.mouse.move(0, 0)
    expect(page.locator(".now")).to_contain_text("%")
    page.screenshot(path=FOLDER / "actions.png", full_page=True)

    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme="light")
    run(page, "Classify", "Flag of Kenya")
    page.screenshot(path=FOLDER / "phone.png")

    page.set_viewport_size(DESKTOP)
    page.get_by_role("link", name="Status").click()
    expect(page.locator("#workers")).to_contain_text("ready")
    page.screenshot(path=FOLDER / "status.png", full_page=True)


if __name__ == "__main__":
    with sync_playwright() as playwright, chromium(playwright) as running:
        take(running, sys.argv[1])
