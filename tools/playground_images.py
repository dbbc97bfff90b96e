"""The pictures of docs/playground.md and the README, of a running service with the starter bundles:
`python -m tools.playground_images http://127.0.0.1:8000 [overview] [sheets]`, by default all."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import BrowserContext, Locator, Page, ViewportSize, expect, sync_playwright

from tests.browser.pages import DESKTOP, PHONE, chromium
from tests.browser.tabs import open_tab, run

FOLDER = Path(__file__).parents[1] / "docs" / "pictures" / "playground"
TABLET: ViewportSize = {"width": 820, "height": 900}
TALL: ViewportSize = {"width": 1360, "height": 960}
"""Size of the overview: a result and the times below it are visible without scrolling."""
SHEET_WIDTH = 1600
GAP = 20
TABS = {
    "Classify": "Flag of Brazil",
    "Inpaint": "Drawing of a daisy",
    "3D": "A mug, with depth",
    "Actions": "Two drawn figures",
    "Clips and sound": "An otter on a rock; the camera zooms in",
}
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
OVERVIEW: dict[str, Theme] = {"classify": "light", "inpaint": "dark", "actions": "dark", "reconstruct": "light"}
"""Which tabs, in which theme, make one picture of the playground."""


def choose(page: Page, tab: str) -> Locator:
    """Open a tab and choose its sample, which runs."""
    panel = open_tab(page, tab)
    panel.get_by_role("button", name=TABS[tab]).click()
    expect(panel.locator("p.line")).to_contain_text("Done in")
    return panel


def shot(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")


def classify(page: Page) -> None:
    panel = choose(page, "Classify")
    panel.get_by_label("Compare with merging off").check()
    run(panel)
    panel.get_by_text("blended").click()


def inpaint(page: Page) -> None:
    panel = choose(page, "Inpaint")
    run(panel)


def reconstruct(page: Page) -> None:
    choose(page, "3D")


def actions(page: Page) -> None:
    look_at_both(page, choose(page, "Actions"))


def clips(page: Page) -> None:
    choose(page, "Clips and sound")


def look_at_both(page: Page, panel: Locator) -> None:
    """Choose the part in which both figures are visible and the first one does something else than walk."""
    panel.get_by_role("button", name="Person 1: ").last.click()
    page.wait_for_function("() => !document.querySelector('#panel-actions video').seeking")
    page.mouse.move(0, 0)
    panel.locator("video").evaluate("(video) => (video.controls = false)")  # they lie over the feet while they fade


def status(page: Page) -> None:
    page.get_by_role("link", name="Status").click()
    expect(page.locator("#workers")).to_contain_text("ready")


PAGES: dict[str, Callable[[Page], None]] = {
    "classify": classify, "inpaint": inpaint, "reconstruct": reconstruct, "actions": actions, "clips": clips, "status": status
}  # fmt: skip


def open_page(page: Page, url: str, name: str, size: ViewportSize, theme: Theme) -> None:
    """Open a page and wait for its result."""
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=theme)
    page.goto(url)
    PAGES[name](page)


def overview(page: Page, url: str) -> None:
    """Save the four tabs in one image."""
    seen = []
    for name, theme in OVERVIEW.items():
        open_page(page, url, name, TALL, theme)
        seen.append(resized_shot(page, TALL))
    save(grid(seen, columns=2), "overview")


def sheets(page: Page, url: str) -> None:
    """Save each page in three sizes side by side, light and dark."""
    for name in PAGES:
        open_page(page, url, name, DESKTOP, "light")
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)
            save(side_by_side([resized_shot(page, size) for size in (DESKTOP, TABLET, PHONE)]), f"{name}-{theme}")


def resized_shot(page: Page, size: ViewportSize) -> Image.Image:
    page.set_viewport_size(size)
    if size["width"] < DESKTOP["width"]:
        page.evaluate("() => document.querySelector('[role=tabpanel]:not([hidden]) .result')?.scrollIntoView()")
    else:
        page.evaluate("() => scrollTo(0, 0)")
    page.wait_for_timeout(300)  # canvases follow their frames
    return shot(page)


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    return grid(pictures, columns=len(pictures))


def grid(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Arrange images row by row on a grey background."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width = max(sum(picture.width + GAP for picture in row) for row in rows) + GAP
    heights = [max(picture.height for picture in row) + GAP for row in rows]
    sheet = Image.new("RGB", (width, sum(heights) + GAP), "#8d8a99")
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width + GAP
        top += height
    return sheet


def save(sheet: Image.Image, name: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    smaller = sheet.resize((SHEET_WIDTH, round(sheet.height * SHEET_WIDTH / sheet.width)), Image.Resampling.LANCZOS)
    smaller.save(FOLDER / f"{name}.webp", quality=80, method=6)


def take(context: BrowserContext, url: str, names: list[str]) -> None:
    page = context.pages[0]
    for name, take_all in (("overview", overview), ("sheets", sheets)):
        if not names or name in names:
            take_all(page, url)


if __name__ == "__main__":
    with sync_playwright() as playwright, chromium(playwright) as running:
        take(running, sys.argv[1], sys.argv[2:])
